"""Runs of a tiny model: what they leave behind, and that no way of stopping them changes how they end."""

import dataclasses
import functools
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from tiny_run import Killed, finish, lines

from bwds.config import Config, OptimConfig, TrainConfig
from bwds.cost import cost
from bwds.counts import num_kept_blocks
from bwds.data import Vocabulary, load_corpus
from bwds.digest import digest
from bwds.files import load_model
from bwds.model import language_model
from bwds.training import NonFiniteError, boundary, loop, train
from bwds.training.checkpoint import Checkpoints, best_checkpoints, last_checkpoints
from bwds.training.evaluation import Evaluation, evaluate
from bwds.training.lock import LOCK_FILE
from bwds.training.metrics import MetricsWriter
from bwds.training.optim import make_optimizer, sparsity_at, step_sparsity
from bwds.training.step import evaluated_params, init_state, train_step
from bwds.training.trained import load_params
from bwds.training.workdir import read_config


def test_without_safetensors_a_run_ends_and_says_what_is_missing(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    summary = train(config, tmp_path, progress=False)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert not (tmp_path / "model.safetensors").exists()
    assert "model.safetensors is not written, because safetensors is not installed" in capsys.readouterr().err


def test_a_run_leaves_its_files(finished, config):
    workdir, summary = finished
    names = {path.name.split(".out.")[0] for path in workdir.iterdir()}
    files = {"config.json", "vocabulary.txt", "metrics.jsonl", "summary.json", "model.safetensors"}
    assert names == {*files, "checkpoints", "events", "lock"}
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert len(Vocabulary.load(workdir / "vocabulary.txt")) == len(tiny_run.WORDS) + 1
    assert last_checkpoints(workdir, read_only=True).steps == [16, 15]


def test_its_best_parameters_are_one_file_too(finished, config):
    workdir, _ = finished
    loaded = load_model(workdir / "model.safetensors", for_decoding=False)
    assert loaded.config.vocab_size == len(tiny_run.WORDS) + 1
    model = dataclasses.replace(config, model=loaded.config)
    expected, step = load_params(model, workdir, "best")
    assert digest(loaded.params) == digest(expected) == loaded.parameters_sha256
    assert loaded.vocabulary == Vocabulary.load(workdir / "vocabulary.txt")
    assert f"{step} steps of 16 (best checkpoint)" in loaded.card


def test_the_summary_is_true(finished, config):
    workdir, summary = finished
    evaluations = {line["step"]: line for line in lines(workdir) if line["split"] == "valid"}
    assert list(evaluations) == [3, 6, 9, 12, 15, 16]
    best = min(evaluations.values(), key=lambda line: line["loss"])
    model = dataclasses.replace(config.model, vocab_size=len(tiny_run.WORDS) + 1)
    params, step = load_params(dataclasses.replace(config, model=model), workdir, "last")
    speeds = [line["tokens_per_second"] for line in lines(workdir, timed=True) if line["split"] == "train"]
    assert summary["steps"] == step == 16
    assert summary["best_step"] == best["step"]
    assert summary["validation_perplexity"] == pytest.approx(math.exp(best["loss"]))
    assert summary["realised_density"] == pytest.approx(0.5)
    assert summary["relative_cost"] == cost(model).relative
    assert summary["tokens_per_second"] == pytest.approx(np.median([s for s in speeds if s is not None]))
    assert summary["parameters_sha256"] == digest(params)
    assert summary["parameters"] == sum(p.size for p in jax.tree.leaves(params))
    assert summary["decode_speedup"] == pytest.approx(
        summary["decode_tokens_per_second"] / summary["dense_decode_tokens_per_second"]
    )
    assert summary["command"] == "the command"


def test_the_best_checkpoint_is_what_was_evaluated(finished, config):
    workdir, summary = finished
    text = load_corpus(config.data)
    model = dataclasses.replace(config.model, vocab_size=len(text.vocabulary))
    params, step = load_params(dataclasses.replace(config, model=model), workdir, "best")
    found = evaluate(language_model(model), params, text.valid, config.data, text.vocabulary.eos_id)
    assert step == summary["best_step"]
    assert math.exp(found.loss) == pytest.approx(summary["validation_perplexity"], rel=1e-9)
    assert found.tokens == len(text.valid)


def test_every_step_is_written_down(finished):
    workdir, _ = finished
    steps = [line for line in lines(workdir, timed=True) if line["split"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, 17))
    for line in steps:
        assert line["perplexity"] == pytest.approx(math.exp(line["loss"]))
        assert line["density"] == line["sparsity"] == 0.5
        assert line["learning_rate"] > 0
        assert line["gradient_norm"] > 0
    # The first step compiles, which is no speed.
    assert [line["step"] for line in steps if line["tokens_per_second"] is None] == [1]
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_a_finished_run_is_not_done_again(finished, config, monkeypatch):
    workdir, summary = finished
    monkeypatch.setattr(loop, "begin", None)
    assert train(config, workdir, progress=False) == summary


def test_the_summary_needs_room_for_the_best_parameters_alone(corpus, tmp_path, monkeypatch):
    """There is neither a state nor a second copy of the parameters on the device."""
    held, there = [], {id(array) for array in jax.live_arrays()}

    def count(config, workdir, params, best, **_):
        sizes = [array.nbytes for array in jax.live_arrays() if id(array) not in there]
        held.append(sum(sizes) / sum(leaf.nbytes for leaf in jax.tree.leaves(best[0])))
        raise Killed

    monkeypatch.setattr(loop, "summarise", count)
    with pytest.raises(Killed):
        train(dataclasses.replace(sgd_config(corpus), optim=OptimConfig()), tmp_path, progress=False)
    assert 1.0 <= held[0] < 1.2


def test_another_configuration_is_refused(finished, config):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != LOCK_FILE}
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=17))
    with pytest.raises(ValueError, match=r"train\.steps: 16 there, 17 now"):
        train(longer, workdir, progress=False)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != LOCK_FILE} == before


def test_a_run_goes_on_where_its_text_and_its_machine_are_others(finished, config, tmp_path, monkeypatch):
    """With the same parameters in the end. The folder is kept as an absolute path; another text there is refused."""
    _, summary = finished
    monkeypatch.setattr(loop, "run_steps", lambda run: loop.start_step(run) and run.kept.save(run.step, run.state))
    monkeypatch.setattr(loop, "finish", lambda *_: {})
    train(config, tmp_path / "run", progress=False)
    monkeypatch.undo()
    shutil.copytree(config.data.directory, tmp_path / "moved")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    data = dataclasses.replace(config.data, directory="moved/", eval_batch_size=3)
    moved = dataclasses.replace(
        config, data=data, train=dataclasses.replace(config.train, log_every=5, checkpoint_every=3)
    )
    found = train(moved, Path("~/run"), progress=False)
    assert found["parameters_sha256"] == summary["parameters_sha256"]
    kept = read_config(tmp_path / "run")
    assert kept.data == dataclasses.replace(data, directory=str(tmp_path / "moved"))
    assert kept.train == moved.train
    valid = tmp_path / "moved" / "valid.txt"
    valid.write_text("".join(reversed(valid.read_text().splitlines(keepends=True))))
    with pytest.raises(ValueError, match="The text has changed"):
        train(moved, tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="'gs:/bucket/run', an address"):
        train(moved, Path("gs://bucket/run"), progress=False)
    assert not (tmp_path / "gs:").exists()


def test_the_best_of_the_state_that_goes_on_is_still_there(corpus, tmp_path, monkeypatch):
    """Later evaluations may find no better one, for example on other devices. States are rarer than evaluations."""
    config = dataclasses.replace(sgd_config(corpus), train=TrainConfig(steps=12, eval_every=1, checkpoint_every=3))
    losses = iter(np.linspace(3.0, 2.0, 20))
    monkeypatch.setattr(boundary, "evaluate", lambda *_, **__: Evaluation(next(losses), 1.0, 10))
    save = Checkpoints.save

    def save_and_die(self, step, tree, **info):
        save(self, step, tree, **info)
        if (self.directory.name, step) == ("best", 9):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(Killed):
            train(config, tmp_path, progress=False)
    newest, before = last_checkpoints(tmp_path, read_only=True).steps
    (tmp_path / "checkpoints" / "last" / str(newest) / "sha256.txt").write_text("damaged")
    monkeypatch.setattr(boundary, "evaluate", lambda *_, **__: Evaluation(4.0, 1.0, 10))
    assert train(config, tmp_path, progress=False)["best_step"] == before


def test_a_loss_that_is_not_finite_stops_the_run(corpus, tmp_path):
    config = tiny_run.config(corpus, method="dense", name="sgd", learning_rate=3e38, clip_norm=3e38, checkpoint_every=1)
    with pytest.raises(NonFiniteError, match=r"is (nan|inf) at step \d+|not finite after step \d+") as failure:
        train(config, tmp_path, progress=False)
    assert "Training stops here" in str(failure.value)
    state_steps = last_checkpoints(tmp_path, read_only=True).steps
    if state_steps:
        assert f"The last good checkpoint is step {state_steps[0]} in {tmp_path}" in str(failure.value)
        model = dataclasses.replace(config.model, vocab_size=len(tiny_run.WORDS) + 1)
        params, _ = load_params(dataclasses.replace(config, model=model), tmp_path, "last")
        assert all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(params))
    else:
        assert "There is no checkpoint yet" in str(failure.value)
    assert not (tmp_path / "summary.json").exists()


def test_parameters_that_are_not_finite_are_not_saved(config, tmp_path, monkeypatch):
    """A checkpoint would be written one step before their loss is known."""
    step = loop.train_step

    def spoil(lm, optimizer, state, *args):
        state, metrics = step(lm, optimizer, state, *args)
        if int(state.step) == 8:
            state = state._replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))
        return state, metrics

    monkeypatch.setattr(loop, "train_step", spoil)
    with pytest.raises(NonFiniteError, match=r"not finite after step 8\. The last good checkpoint is step 6"):
        train(config, tmp_path, progress=False)
    assert last_checkpoints(tmp_path, read_only=True).steps == [6, 4]


def test_cubic_schedule_runs_in_one_compilation(corpus, tmp_path, monkeypatch):
    schedule = {"sparsity_begin": 2 / 16, "sparsity_end": 10 / 16, "sparsity_every": 2}
    config = tiny_run.config(corpus, sparsity_schedule="cubic", **schedule, eval_every=4)
    traces = []

    def counting_model(model):
        lm = language_model(model)

        def apply(*args, **kwargs):
            traces.append("train" if kwargs.get("dropout_key") is not None else "eval")
            return lm.apply(*args, **kwargs)

        return lm._replace(apply=apply)

    monkeypatch.setattr("bwds.training.run.language_model", counting_model)
    train(config, tmp_path, progress=False)
    assert sorted(traces) == ["eval", "train"]
    matrix = 2 * 8  # blocks of [32] -> [128]
    for line in lines(tmp_path):
        step = line["step"] - (line["split"] == "train")
        assert line["sparsity"] == pytest.approx(sparsity_at(config, step))
        assert line["density"] == pytest.approx(num_kept_blocks(matrix, sparsity_at(config, step)) / matrix)
    # Evaluations of a model denser than the one asked for do not compete for the best.
    assert min(best_checkpoints(tmp_path, read_only=True).steps) >= 10


def test_a_range_of_sparsities_is_one_compilation_and_resumes_the_same(corpus, tmp_path, monkeypatch, caplog):
    config = tiny_run.config(corpus, sparsity_range=(0.1, 0.9), steps=8, eval_every=4, checkpoint_every=1)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        wanted = train(config, tmp_path / "whole", progress=False)
    compiled = [record for record in caplog.records if record.getMessage().startswith("Compiling jit(train_step)")]
    assert len(compiled) == 1
    matrix = 2 * 8  # blocks of [32] -> [128]
    written = lines(tmp_path / "whole")
    for line in written:
        expected = step_sparsity(config, line["step"] - 1) if line["split"] == "train" else 0.5
        assert line["sparsity"] == expected
        assert line["density"] == pytest.approx(num_kept_blocks(matrix, expected) / matrix)
    assert len({line["density"] for line in written}) > 3

    def interrupted(run):
        if run.step == 5:
            raise KeyboardInterrupt
        return start_step(run)

    start_step = loop.start_step

    monkeypatch.setattr("bwds.training.loop.start_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", progress=False)
    monkeypatch.undo()
    again = train(config, tmp_path / "cut", progress=False)
    assert again["parameters_sha256"] == wanted["parameters_sha256"]


def sgd_config(corpus):
    """Dense and without an average, because that compiles faster and the tests with it are about neither."""
    return tiny_run.config(corpus, method="dense", name="sgd", learning_rate=0.8, eval_every=2, steps=8, ema_decay=0.0)


@pytest.fixture(scope="module")
def stepper(corpus):
    """``(state, step)`` with sgd: ``step`` takes a state and options; it uses up only a copy of the state."""
    config = sgd_config(corpus)
    model = dataclasses.replace(config.model, vocab_size=len(tiny_run.WORDS) + 1)
    lm, optimizer = language_model(model), make_optimizer(config.optim, config.train.steps)
    tokens = np.arange(36, dtype=np.int32).reshape(4, 9) % 31

    def step(state, *, new_epoch=False):
        copy = jax.tree.map(jnp.copy, state)
        return train_step(lm, optimizer, copy, tokens[:, :-1], tokens[:, 1:], np.bool_(new_epoch), None)

    return init_state(lm, optimizer, jax.random.key(0), batch_size=4), step


def test_plateau_scales_the_update(stepper):
    state, step = stepper
    halved = state._replace(plateau=state.plateau._replace(scale=jnp.float32(0.5)))
    (whole, metrics), (half, half_metrics) = step(state), step(halved)
    for before, one, other in zip(*(jax.tree.leaves(s.params) for s in (state, whole, half)), strict=True):
        np.testing.assert_allclose(other - before, 0.5 * (one - before), atol=1e-6)
    assert float(half_metrics.learning_rate) == 0.5 * float(metrics.learning_rate)


def test_a_new_epoch_starts_from_zeros(stepper):
    state, step = stepper
    other = state._replace(carry=jax.tree.map(lambda c: c + 0.5, state.carry))
    assert float(step(other)[1].loss) != float(step(state)[1].loss)
    assert float(step(other, new_epoch=True)[1].loss) == float(step(state)[1].loss)


def test_dropout_is_another_in_every_step(stepper):
    state, step = stepper
    later = state._replace(step=jnp.int32(5))
    assert float(step(state)[1].loss) == float(step(state)[1].loss)
    assert float(step(later)[1].loss) != float(step(state)[1].loss)
    assert int(step(later)[0].step) == 6


def test_metrics_that_cannot_be_written_stop_the_run(corpus, tmp_path, monkeypatch):
    """The error names the file and the way out, even if the file cannot be closed either."""
    write = MetricsWriter.write

    def write_to_full(self, **values):
        if values["step"] == 3:
            self._file.close()
            self._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
        write(self, **values)

    monkeypatch.setattr(MetricsWriter, "write", write_to_full)
    message = r"metrics\.jsonl cannot be written: No space left on device\. Training stopped after step \d\. Make room"
    with pytest.raises(OSError, match=message):
        train(sgd_config(corpus), tmp_path, progress=False)


def test_sgd_halves_its_rate_where_validation_does_not_improve(corpus, tmp_path, monkeypatch):
    config = sgd_config(corpus)
    losses = iter([3.0, 3.5, 2.0, 2.0])
    monkeypatch.setattr(boundary, "evaluate", lambda *_, **__: Evaluation(next(losses), 1.0, 10))
    train(config, tmp_path, progress=False)
    rates = [line["learning_rate"] for line in lines(tmp_path) if line["split"] == "train"]
    assert rates == pytest.approx([0.8] * 4 + [0.4] * 4)
    assert best_checkpoints(tmp_path, read_only=True).steps == [6, 2]


def test_evaluation_is_one_pass_over_the_text(config):
    text = load_corpus(config.data)
    model = dataclasses.replace(config.model, vocab_size=len(text.vocabulary))
    lm, eos = language_model(model), text.vocabulary.eos_id
    params = lm.init(jax.random.key(0))
    inputs = np.concatenate([[eos], text.test[:-1]]).astype(np.int32)
    logits, _, _ = jax.jit(lm.apply)(params, inputs[None, :], lm.init_carry(1))
    chosen = jax.nn.log_softmax(logits[0])[np.arange(len(inputs)), text.test]
    one_by_one = dataclasses.replace(config.data, eval_batch_size=1)
    assert evaluate(lm, params, text.test, one_by_one, eos).loss == pytest.approx(-float(chosen.mean()), rel=1e-5)


def test_a_run_of_an_equal_configuration_compiles_no_step_anew(config, finished, tmp_path, caplog):
    del finished
    other = Config.from_json(config.to_json())
    other = dataclasses.replace(other, train=dataclasses.replace(config.train, seed=config.train.seed + 1))
    assert language_model(other.model) is language_model(config.model)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        finish(other, tmp_path)
    compiled = {name for r in caplog.records for name in re.findall(r"Compiling jit\((\w+)\)", r.getMessage())}
    assert not compiled & {"train_step", "eval_step", "init_state", "greedy_rollout"}, compiled


def test_an_evaluation_compiles_once(config, caplog):
    text = load_corpus(config.data)
    lm = language_model(dataclasses.replace(config.model, vocab_size=len(text.vocabulary)))
    jax.clear_caches()
    # They are put on a named device, as those of a checkpoint are.
    params = jax.device_put(lm.init(jax.random.key(0)), jax.devices()[0])
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for ids in (text.valid, text.test):
            evaluate(lm, params, ids, config.data, text.vocabulary.eos_id)
    assert len([r for r in caplog.records if r.getMessage().startswith("Compiling jit(eval_step)")]) == 1


def test_an_evaluation_can_be_given_up(config):
    text = load_corpus(config.data)
    model = dataclasses.replace(config.model, vocab_size=len(text.vocabulary))
    lm = language_model(model)

    def give_up():
        raise Killed

    with pytest.raises(Killed):
        evaluate(lm, lm.init(jax.random.key(0)), text.valid, config.data, text.vocabulary.eos_id, after_batch=give_up)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_text_in_another_order_is_another_text(tmp_path, monkeypatch, split):
    """Its vocabulary is the same. A checkpoint of an earlier version does not record the text."""
    config = sgd_config(tiny_run.write_corpus(tmp_path / "text"))
    path, save = tmp_path / "text" / f"{split}.txt", Checkpoints.save
    monkeypatch.setattr(loop, "run_steps", lambda run: run.kept.save(run.step, run.state))
    monkeypatch.setattr(loop, "finish", lambda *_: {})
    train(config, tmp_path / "run", progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda *arguments, text_sha256, **info: save(*arguments, **info))
        train(config, tmp_path / "old", progress=False)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(lines)))
    with pytest.raises(ValueError, match=r"text has changed since the run in .*run' began"):
        train(config, tmp_path / "run", progress=False)
    train(config, tmp_path / "old", progress=False)
    path.write_text("".join(lines))
    train(config, tmp_path / "run", progress=False)


def test_a_text_shorter_than_a_batch_leaves_no_folder(corpus, tmp_path):
    with pytest.raises(ValueError, match="fewer than one batch"):
        train(tiny_run.config(corpus, batch_size=5000), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


# Objective and average ------------------------------------------------------------------------------------------------


def test_without_an_average_the_parameters_count(stepper):
    state, _ = stepper
    assert state.average is None
    for one, other in zip(jax.tree.leaves(evaluated_params(state)), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(one, other)


def test_checkpoints_hold_the_average(finished, config):
    """The parameters that are evaluated last are not the last ones; both are in the last checkpoint."""
    workdir, summary = finished
    model = dataclasses.replace(config.model, vocab_size=len(tiny_run.WORDS) + 1)
    lm, optimizer = language_model(model), make_optimizer(config.optim, config.train.steps)
    fresh = functools.partial(init_state, lm, optimizer, batch_size=4)
    state, _ = last_checkpoints(workdir, read_only=True).restore(jax.eval_shape(fresh, jax.random.key(0)))
    assert digest(evaluated_params(state)) == summary["parameters_sha256"] != digest(state.params)
    text = load_corpus(config.data)
    (line,) = [line for line in lines(workdir) if (line["split"], line["step"]) == ("valid", 16)]
    of_average, of_latest = (
        evaluate(lm, params, text.valid, config.data, text.vocabulary.eos_id).loss
        for params in (state.average, state.params)
    )
    assert line["loss"] == pytest.approx(of_average, rel=1e-6)
    assert abs(of_average - of_latest) > 1e-4
