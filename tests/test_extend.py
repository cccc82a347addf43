"""More steps for a finished run: from where it stopped, by a plan that is said, or not at all."""

import json
import signal

import pytest
import tiny_run
from called import call

from bwds.training import train
from bwds.training.metrics import read_metrics
from bwds.training.signals import InterruptedRunError

SGD = {"name": "sgd", "learning_rate": 1.0, "eval_every": 4, "checkpoint_every": 4}


def summary(workdir, name="summary.json"):
    return json.loads((workdir / name).read_text())


def test_sgd_goes_on_as_if_it_had_been_planned(corpus, tmp_path, capsys):
    """Bit for bit: neither its rate nor anything else knew where the end was."""
    config = tiny_run.config(corpus, steps=8, **SGD)
    arguments = tiny_run.arguments(config, tmp_path / "run")
    assert call(capsys, "train", *arguments)[0] == 0
    short = summary(tmp_path / "run")
    code, out, err = call(capsys, "train", *arguments, "--extend-to", "16")
    assert code == 0
    assert "The run of 8 steps goes on to step 16. Learning rate: as planned, 1 times what plateaus have left" in err
    assert "Resuming from the checkpoint of step 8" in err
    assert "The run is finished: 16 steps" in out
    train(tiny_run.config(corpus, steps=16, **SGD), tmp_path / "whole", progress=False)
    for name in ("steps", "parameters_sha256", "validation_perplexity", "best_step"):
        assert summary(tmp_path / "run")[name] == summary(tmp_path / "whole")[name]
    lines = [
        [(line["step"], line["split"], line["loss"]) for line in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("run", "whole")
    ]
    assert lines[0] == lines[1]
    assert summary(tmp_path / "run", "summary_8.json") == short
    # The run has 16 steps now: either command finds it finished, and its old command is another run's.
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    assert "The run is finished: 16 steps" in call(capsys, "train", *arguments, "--train.extend-to", "16")[1]
    assert "The run is finished: 16 steps" in call(capsys, "train", *arguments, "--train.steps", "16")[1]
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before
    code, _, err = call(capsys, "train", *arguments)
    assert (code, "train.steps: 16 there, 8 now" in err) == (2, True)
    code, _, err = call(capsys, "train", *arguments, "--extend-to", "12")
    assert (code, "has 16 steps; to extend it, take more than that, not 12." in err) == (2, True)


def test_adamw_takes_the_cosine_of_all_steps_and_says_so(corpus, tmp_path, capsys):
    config = tiny_run.config(corpus, steps=8, eval_every=4, checkpoint_every=4)
    arguments = tiny_run.arguments(config, tmp_path / "run")
    assert call(capsys, "train", *arguments)[0] == 0
    code, _, err = call(capsys, "train", *arguments, "--extend-to", "16")
    assert code == 0
    train(tiny_run.config(corpus, steps=16, eval_every=4, checkpoint_every=4), tmp_path / "whole", progress=False)
    metrics = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("run", "whole")]
    rates = [{line["step"]: line["learning_rate"] for line in lines if line["split"] == "train"} for lines in metrics]
    assert rates[0].keys() == rates[1].keys() == set(range(1, 17))
    assert {step: rates[0][step] for step in range(9, 17)} == {step: rates[1][step] for step in range(9, 17)}
    assert rates[0][8] < 0.2 * rates[0][9]
    assert f"the cosine of 16 steps from here, so it rises again from 0 to {rates[0][9]:.3g}" in err


def test_an_extended_run_that_is_stopped_goes_on(corpus, tmp_path, monkeypatch, capsys):
    config = tiny_run.config(corpus, steps=4, **SGD)
    train(config, tmp_path / "run", progress=False)
    longer = tiny_run.config(corpus, steps=12, **SGD)
    import bwds.training.loop as loop

    start_step = loop.start_step

    def stopped(run):
        if run.step == 7:
            signal.raise_signal(signal.SIGTERM)
        return start_step(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "start_step", stopped)
        with pytest.raises(InterruptedRunError, match="of 12"):
            train(longer, tmp_path / "run", progress=False, extended=True)
    assert not (tmp_path / "run/summary.json").exists()
    arguments = [*tiny_run.arguments(config, tmp_path / "run"), "--extend-to", "12"]
    assert call(capsys, "train", *arguments)[0] == 0
    train(longer, tmp_path / "whole", progress=False)
    assert summary(tmp_path / "run")["parameters_sha256"] == summary(tmp_path / "whole")["parameters_sha256"]


def test_what_cannot_be_extended_is_refused_and_left_as_it_is(corpus, tmp_path, capsys):
    config = tiny_run.config(corpus, steps=4, **SGD)
    train(config, tmp_path / "run", progress=False)
    pruned = tiny_run.config(corpus, steps=8, method="magnitude", dropout=0.0, sparsity_every=1, **SGD)
    train(pruned, tmp_path / "pruned", progress=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    for arguments, message in (
        (
            [*tiny_run.arguments(pruned, tmp_path / "pruned"), "--extend-to", "12"],
            "in fractions of all its 8",
        ),
        ([*tiny_run.arguments(config, tmp_path / "none"), "--extend-to", "12"], "There is no run in"),
        ([*tiny_run.arguments(config, tmp_path / "run"), "--extend-to", "3"], "take more than that, not 3"),
        ([*tiny_run.arguments(config, tmp_path / "run"), "--extend-to", "0"], "steps is 0"),
        (
            [*tiny_run.arguments(config, tmp_path / "run"), "--model.sparsity", "0.75", "--extend-to", "12"],
            "model.sparsity: 0.5 there, 0.75 now",
        ),
    ):
        code, _, err = call(capsys, "train", *arguments)
        assert (code, message in err) == (2, True), err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_a_run_that_is_not_finished_is_not_extended(corpus, tmp_path, capsys):
    config = tiny_run.config(corpus, steps=4, **SGD)
    train(config, tmp_path / "run", progress=False)
    (tmp_path / "run/summary.json").unlink()
    code, _, err = call(capsys, "train", *tiny_run.arguments(config, tmp_path / "run"), "--extend-to", "12")
    assert (code, "has not done its 4 steps; give its own command" in err) == (2, True)
    assert json.loads((tmp_path / "run/config.json").read_text())["train"]["steps"] == 4


def test_another_text_extends_nothing(tmp_path, capsys):
    text = tiny_run.write_corpus(tmp_path / "text")
    config = tiny_run.config(text, steps=4, **SGD)
    train(config, tmp_path / "run", progress=False)
    tiny_run.write_corpus(tmp_path / "text", seed=1)
    code, _, err = call(capsys, "train", *tiny_run.arguments(config, tmp_path / "run"), "--extend-to", "12")
    assert (code, "The text has changed since the run" in err) == (2, True)
    assert (tmp_path / "run/summary.json").exists()
    assert json.loads((tmp_path / "run/config.json").read_text())["train"]["steps"] == 4
