"""The two scripts as a user meets them: what they print, their exit codes, and that killing one changes nothing."""

import dataclasses
import importlib.util
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run
from called import assert_refused, outcome

import bwds
from bwds import cli, generate, model
from bwds.cli import eval as eval_command
from bwds.cli import train as train_command
from bwds.config import Config, ModelConfig
from bwds.cost import cost
from bwds.data import Vocabulary
from bwds.presets import PRESETS
from bwds.training import train
from bwds.training.devices import DistributedConfig, MeshConfig
from bwds.training.lock import LOCK_FILE
from bwds.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]


def load(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SCRIPTS = {name: load(name) for name in ("train", "eval")}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables of the processes started here: the next need not compile what one has compiled."""
    cache = tmp_path_factory.mktemp("compiled")
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


@pytest.fixture(scope="module")
def config(corpus):
    return tiny_run.config(corpus, steps=8, eval_every=4)


@pytest.fixture(scope="module")
def finished(config, environment, tmp_path_factory):
    """Folder and process of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    command = [sys.executable, "train.py", *tiny_run.arguments(config, workdir)]
    return workdir, subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def simple(corpus):
    """A run that is started many times: its model is compiled in half of the time."""
    return tiny_run.config(corpus, method="dense", cell="qrnn", steps=40, checkpoint_every=1, eval_every=20)


@pytest.fixture(scope="module")
def whole(simple, tmp_path_factory):
    """The folder of that run when nothing stopped it."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    train(simple, workdir, progress=False)
    return workdir


@pytest.fixture
def start(simple, environment, tmp_path):
    """Starts train.py with it in ``tmp_path / "run"``."""

    def start(**options):
        command = [sys.executable, "train.py", *tiny_run.arguments(simple, tmp_path / "run")]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    return start


def wait_for(process, reached, *, seconds=120):
    """Waits until ``reached()`` or the end of the process."""
    end = time.monotonic() + seconds
    while process.poll() is None and not reached():
        if time.monotonic() > end:
            process.kill()
            pytest.fail("The process did not get there in time.")
        time.sleep(0.002)


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def call(capsys, name, *arguments):
    """Exit code, stdout and stderr of a script, run in this process."""
    return outcome(capsys, cli.run, SCRIPTS[name].main, f"{name}.py", arguments)


def test_a_run_ends_with_a_summary(finished):
    workdir, process = finished
    assert (process.returncode, "Traceback" in process.stderr) == (0, False)
    found = summary(workdir)
    for part in (
        f"validation perplexity   {found['validation_perplexity']:.2f}, at step {found['best_step']}",
        f"realised density        {found['realised_density']:.4f}",
        f"cost against dense      {found['relative_cost']:.3f}",
        f"{found['tokens_per_second']:,.0f} tokens/s",
        f"{found['decode_speedup']:.2f}x, gate included",
        f"saved in                {workdir}",
    ):
        assert part in process.stdout
    # Not a terminal: lines, no bar.
    assert re.search(r"^step \d+/8  loss", process.stderr, re.M)
    assert "\r" not in process.stderr
    assert "it/s" not in process.stderr


def test_the_command_that_is_printed_evaluates(finished, environment):
    workdir, process = finished
    command = re.search(r"^Evaluate with: (.*)$", process.stdout, re.M)[1]
    done = subprocess.run(
        [*shlex.split(command), "--split", "valid"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    expected = summary(workdir)["validation_perplexity"]
    assert done.stdout.splitlines()[-1] == f"validation perplexity: {expected:.2f}"
    written = json.loads((workdir / "eval_valid.json").read_text())
    assert f"{written['perplexity']:.4g}" == f"{expected:.4g}"
    assert written["density"] == pytest.approx(summary(workdir)["realised_density"])
    assert written["step"] == summary(workdir)["best_step"]


def test_the_same_command_says_that_the_run_is_finished(finished, config, capsys):
    workdir, process = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    code, out, _ = call(capsys, "train", *tiny_run.arguments(config, workdir))
    assert code == 0
    assert "The run is finished" in out
    assert out.split("Evaluate with")[0] == process.stdout.split("Evaluate with")[0]
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow  # test_interruption kills a run at each of its checkpoints, without a process for each.
def test_sigkill_at_any_moment_changes_nothing(whole, start, tmp_path):
    workdir = tmp_path / "run"
    choose = random.Random(0)
    steps = []
    for _ in range(2):
        process = start()
        # A step takes some milliseconds, and a checkpoint is written after each.
        target = (steps[-1] if steps else 0) + choose.randrange(1, 8)
        wait_for(process, lambda target=target: (workdir / f"checkpoints/last/{target}").exists())
        time.sleep(choose.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        steps.append(max(int(path.name) for path in (workdir / "checkpoints/last").iterdir() if path.name.isdigit()))
    assert steps[-1] < 40, "It was done before it could be killed."
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "sp')
    process = start()
    _, err = process.communicate()
    assert process.returncode == 0
    assert "Resuming from the checkpoint of step" in err
    for name in ("parameters_sha256", "validation_perplexity", "best_step"):
        assert summary(workdir)[name] == summary(whole)[name]
    found, expected = (
        [(line["step"], line["split"], line["loss"]) for line in read_metrics(w / "metrics.jsonl")]
        for w in (workdir, whole)
    )
    assert found == expected


def test_sigterm_and_ctrl_c_save_and_say_how_to_go_on(whole, start, tmp_path, simple):
    workdir = tmp_path / "run"
    for signum, code, step in ((signal.SIGTERM, 0, 3), (signal.SIGINT, 130, 12)):
        process = start()
        wait_for(process, lambda step=step: (workdir / f"checkpoints/last/{step}").exists())
        process.send_signal(signum)
        out, err = process.communicate()
        assert process.returncode == code
        assert "saving a checkpoint" in err
        assert "Traceback" not in err
        stopped = int(re.search(r"Stopped after step (\d+) of 40", out)[1])
        assert step <= stopped < 40
        assert (workdir / f"checkpoints/last/{stopped}").exists()
        resume = shlex.split(re.search(r"^Resume with: (.*)$", out, re.M)[1])
        assert resume[1:] == ["train.py", *tiny_run.arguments(simple, workdir)]
    process = start()
    process.communicate()
    assert process.returncode == 0
    assert summary(workdir)["parameters_sha256"] == summary(whole)["parameters_sha256"]


def test_another_configuration_is_refused_with_its_differences(finished, config, capsys):
    workdir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != LOCK_FILE}
    arguments = [*tiny_run.arguments(config, workdir), "--model.sparsity", "0.75", "--train.steps", "50"]
    assert_refused(
        call(capsys, "train", *arguments), "model.sparsity: 0.5 there, 0.75 now", "train.steps: 8 there, 50 now"
    )
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.name != LOCK_FILE} == before


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["slow"], ["slow", *PRESETS]),
        (["--data.dataset", "nothing"], ["Unknown dataset 'nothing'", "pydoc"]),
        (["--model.sparsity", "1.0"], ["sparsity is 1.0", "less than 1"]),
        (["--model.sparsity", "-0.1"], ["sparsity is -0.1"]),
        (["--model.hidden-size", "100"], ["--model.hidden-size 100 is not a multiple of --model.block-size 32"]),
        (["--model.hidden-size", "wide"], ["--model.hidden-size", "wide"]),
        (["--model.cell", "gru"], ["gru", "lstm", "qrnn"]),
        (["--model.sparsty", "0.5"], ["--model.sparsty", "--model.sparsity"]),
        (["--model.vocab-size", "9"], ["--model.vocab-size is no option"]),
        (["--model.vocab_size=9"], ["--model.vocab-size is no option"]),
        (["--train.steps"], ["--train.steps"]),
        (["--train.steps", "0"], ["steps is 0"]),
        (["--train.seed", str(2**32)], ["seed is 4294967296"]),
        (
            ["--train.sparsity-end", "300", "--model.method", "magnitude"],
            ["sparsity_end 300.0", "fractions of all steps"],
        ),
        (["--model.method", "magnitude", "--train.steps", "2"], ["steps is 2", "more steps"]),
        (["--model.method", "magnitude", "--train.sparsity-schedule", "constant"], ["'constant'", "cubic"]),
        (["--model.method", "static-block", "--model.sparsity", "0.9"], ["sparsity is 0.9", "0.875", "block size"]),
        (["--train.steps", "5", "ptb-lstm"], ["ptb-lstm", "first"]),
        (["--data.dataset", "text", "--data.directory", "nowhere"], ["nowhere"]),
        (["--workdir", "train.py"], ["'train.py' is a file"]),
        (["--workdir", "gs://bucket/run"], ["--workdir is 'gs://bucket/run', an address"]),
        (["--data.dataset", "text", "--data.directory", "s3:/text"], ["--data.directory is 's3:/text', an address"]),
        (["--workdir", "caf\udce9"], ["'caf\\udce9' is not UTF-8"]),
    ],
)
def test_mistakes_are_one_sentence(arguments, parts, capsys, tmp_path, monkeypatch):
    (tmp_path / "train.py").touch()
    monkeypatch.chdir(tmp_path)
    assert_refused(call(capsys, "train", *arguments), *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["train.py"]


def test_an_error_of_the_parser_is_one_sentence_where_stdout_is_not_utf8(capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
        code = cli.run(SCRIPTS["train"].main, "train.py", ["--model.cell", "gru"])
    assert code == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: invalid choice 'gru' for argument '--model.cell'. Expected one of ('lstm', 'qrnn')."
    assert hint == "See python train.py --help."


def test_options_start_from_the_preset():
    parse = train_command.parse
    others = (MeshConfig(), DistributedConfig(), None, 0, False)
    assert parse([]) == (PRESETS["quick"], Path("runs/quick"), *others)
    assert parse(["ptb-lstm"]) == (PRESETS["ptb-lstm"], Path("runs/ptb-lstm"), *others)
    config, workdir, mesh, *_ = parse(
        ["--mesh.model", "2", "--workdir", "here", "--train.eval-every", "7", "--model.method", "dense"]
    )
    assert (config.train.eval_every, config.model.method, workdir) == (7, "dense", Path("here"))
    assert mesh == MeshConfig(data=None, model=2)
    assert (config.model.hidden_size, config.data) == (PRESETS["quick"].model.hidden_size, PRESETS["quick"].data)
    assert parse(["ptb-qrnn-small", "--model.sparsity", "0.9"])[0].model.cell == "qrnn"
    # The trace is no part of the configuration: the run is the same with it or without.
    assert parse(["--train.profile", "5"]) == parse([])._replace(profile=5)
    with pytest.raises(ValueError, match="-1; it must be at least 0"):
        parse(["--train.profile", "-1"])


@pytest.mark.parametrize("arguments", [["--help"], ["ptb-lstm", "--help"]])
def test_help_lists_presets_and_options(arguments, capsys):
    code, out, _ = call(capsys, "train", *arguments)
    assert code == 0
    for part in (*PRESETS, "--workdir", "--model.sparsity", "--data.directory", "--train.eval-every"):
        assert part in out
    assert "vocab-size" not in out


def test_help_of_eval_says_what_generate_does(capsys):
    code, out, _ = call(capsys, "eval", "--help")
    assert code == 0
    for part in ("--split", "--checkpoint", "--data.directory", "--batch-size", "evaluates nothing"):
        assert part in out


def test_any_split_is_evaluated(finished, capsys):
    workdir, _ = finished
    lines = {}
    for split, options in {
        "test": [],
        "validation": ["--checkpoint", "last"],
        "train": ["--split", "train", "--batch-size", "3"],
    }.items():
        arguments = ["--split", "validation", *options] if split == "validation" else options
        code, out, _ = call(capsys, "eval", "--workdir", str(workdir), *arguments)
        assert code == 0
        lines[split] = out.splitlines()[-1]
        name = "valid_last" if split == "validation" else split
        written = json.loads((workdir / f"eval_{name}.json").read_text())
        assert lines[split] == f"{split} perplexity: {written['perplexity']:.2f}"
        assert written["checkpoint"] == ("last" if split == "validation" else "best")
    assert len({line.split()[-1] for line in lines.values()}) == 3


def test_the_perplexity_is_the_last_line_of_both_outputs_together(finished, monkeypatch):
    both = io.StringIO()
    monkeypatch.setattr(sys, "stdout", both)
    monkeypatch.setattr(sys, "stderr", both)
    eval_command.main(["--workdir", str(finished[0])])
    assert both.getvalue().splitlines()[-1].startswith("test perplexity: ")


def test_a_configuration_of_another_shape_is_told_before_anything_is_read(finished, tmp_path, capfd):
    """Orbax would print tracebacks of its threads."""
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    written = json.loads((workdir / "config.json").read_text())
    written["model"]["hidden_size"] *= 2
    (workdir / "config.json").write_text(json.dumps(written))
    for which in ("best", "last"):
        result = call(capfd, "eval", "--workdir", str(workdir), "--checkpoint", which)
        assert_refused(result, "is not that of its checkpoint (hidden_size was")


def test_text_that_has_moved_and_changed_is_read_with_the_old_vocabulary(finished, capsys, tmp_path):
    workdir, _ = finished
    moved = tiny_run.write_corpus(tmp_path / "moved")
    with (moved / "train.txt").open("a") as file:
        file.write("w7 " * 500)
    arguments = ["--workdir", str(workdir)]
    there, here = (call(capsys, "eval", *arguments, *options) for options in ([], ["--data.directory", str(moved)]))
    assert there[1] == here[1]
    assert here[2] == f"This was the test split of text in {moved}.\n"
    _, changed, told = call(capsys, "eval", *arguments, "--split", "train", "--data.directory", str(moved))
    _, before, nothing = call(capsys, "eval", *arguments, "--split", "train")
    assert changed != before
    # Eval says so, and keeps the files apart: the one of the run's own text is of its own text, whatever came first.
    assert "warning: this train text is not the run's" in told
    assert "0 of its" in told
    assert "warning" not in nothing
    own = json.loads((workdir / "eval_train.json").read_text())
    assert own["directory"] != str(moved)
    (other,) = [json.loads(path.read_text()) for path in workdir.glob("eval_train_*.json")]
    assert other["directory"] == str(moved)
    assert own["text_sha256"] != other["text_sha256"]


def test_a_result_that_cannot_be_kept_is_shown(finished, capsys, monkeypatch):
    """This holds in a folder that may not be written. If the result cannot be shown either, that is an error."""

    def refuse(path, _):
        raise OSError(f"{path} cannot be written: Read-only file system.")

    monkeypatch.setattr("bwds.filesystem.write_text", refuse)
    code, out, err = call(capsys, "eval", "--workdir", str(finished[0]))
    assert code == 0
    assert "test perplexity: " in out
    assert "warning: " in err
    assert "eval_test.json cannot be written: Read-only" in err
    gone = io.StringIO()
    gone.close()
    monkeypatch.setattr(sys, "stdout", gone)
    code, _, err = call(capsys, "eval", "--workdir", str(finished[0]))
    assert code == 1
    assert "error: " in err


def test_one_model_is_evaluated_at_several_sparsities(finished, capsys):
    workdir, *_ = finished
    code, out, err = call(capsys, "eval", "--workdir", str(workdir), "--sparsity", "0", "0.5", "0.75")
    assert code == 0
    assert "This was the test split of" in err
    header, *table = out.splitlines()
    assert header.split() == ["sparsity", "perplexity", "realised", "density", "cost", "against", "dense"]
    written = json.loads((workdir / "eval_test_sparsities.json").read_text())
    rows = written["sparsities"]
    assert [row["sparsity"] for row in rows] == [0.0, 0.5, 0.75]
    model = Config.from_json((workdir / "config.json").read_text()).model
    for line, row in zip(table, rows, strict=True):
        shown = [f"{row['sparsity']:g}", f"{row['perplexity']:.2f}", f"{row['density']:.4f}"]
        assert line.split() == [*shown, f"{row['relative_cost']:.3f}"]
        assert row["density"] == pytest.approx(1 - row["sparsity"])
        assert row["relative_cost"] == cost(dataclasses.replace(model, sparsity=row["sparsity"])).relative
    call(capsys, "eval", "--workdir", str(workdir))
    own = json.loads((workdir / "eval_test.json").read_text())
    at_half = rows[1]
    assert model.sparsity == 0.5
    assert at_half["perplexity"] == pytest.approx(own["perplexity"], rel=1e-5)
    assert (written["tokens"], written["text_sha256"]) == (own["tokens"], own["text_sha256"])


def test_another_kernel_evaluates_only_where_it_is_named(finished, capsys, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["model"]["implementation"] = "triton"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    arguments = ["--workdir", str(tmp_path / "run")]
    assert_refused(call(capsys, "eval", *arguments), "'triton' needs the platform gpu", "--model.implementation='xla'")
    assert call(capsys, "eval", *arguments, "--model.implementation", "xla")[0] == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_behind_the_output_is_no_error_of_a_run(finished, config, environment):
    command = [sys.executable, "train.py", *tiny_run.arguments(config, finished[0])]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_ends_does_not_end_the_run(whole, start, tmp_path):
    """Nor does a standard stream that is closed: no file of the run takes its place."""
    process = start()
    process.stderr.readline()
    process.stderr.close()
    process.stdout.close()
    assert process.wait() == 0
    assert summary(tmp_path / "run")["parameters_sha256"] == summary(whole)["parameters_sha256"]


def test_generate_writes_text(finished, capsys):
    workdir, _ = finished
    arguments = ["--workdir", str(workdir), "--generate", "w1 w3", "--words", "20"]
    before = sorted(path.name for path in workdir.iterdir())
    texts = [call(capsys, "eval", *arguments, *more)[1] for more in ([], [], ["--seed", "1"], ["--temperature", "0"])]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("w1 w3") for text in texts)
    assert {word for text in texts for word in text.split()} <= set(tiny_run.WORDS)
    assert "perplexity" not in texts[0]
    assert sorted(path.name for path in workdir.iterdir()) == before


def test_words_of_a_prompt_that_are_read_as_unk_are_named(capsys, monkeypatch):
    vocabulary = Vocabulary(("w1", "<unk>", "<eos>"))
    config = Config(ModelConfig(vocab_size=3, method="dense", hidden_size=4, block_size=4, num_layers=1))
    monkeypatch.setattr(generate, "generate", lambda *_, **__: np.array([0]))
    lm = model.language_model(config.model)
    for prompt, told in (("w1 zebra <unk> ape zebra", "no 'zebra', 'ape'; <unk> is read instead."), ("w1", "")):
        options = eval_command.Options(workdir="", generate=prompt)
        text = eval_command.write(options, config, lm, lm.init(jax.random.key(0)), vocabulary)
        assert text.startswith("w1 <unk> <unk> <unk> <unk>" if told else "w1")
        assert capsys.readouterr().err == (f"The vocabulary has {told}\n" if told else "")


def test_banned_words_are_not_written(finished, capsys):
    arguments = ["--workdir", str(finished[0]), "--generate", "w1", "--words", "20", "--temperature", "0"]
    _, text, _ = call(capsys, "eval", *arguments)
    banned = text.split()[1:4]
    _, other, _ = call(capsys, "eval", *arguments, "--ban", *banned)
    assert not set(banned) & set(other.split()[1:])


def test_the_model_is_handed_on_as_one_file(finished, capsys, tmp_path):
    workdir, file = finished[0], tmp_path / "model.safetensors"
    call(capsys, "eval", "--workdir", str(workdir))
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    arguments = ["--workdir", str(workdir), "--export", str(file)]
    code, out, _ = call(capsys, "eval", *arguments)
    assert code == 0
    assert f"bwds.load_model({str(file)!r})" in out
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before

    of_file, of_run = bwds.load(file), bwds.load(workdir)
    jax.tree.map(np.testing.assert_array_equal, of_file.params, of_run.params)
    for name in ("config", "vocabulary", "card", "parameters_sha256"):
        assert getattr(of_file, name) == getattr(of_run, name)
    tested = json.loads((workdir / "eval_test.json").read_text())["perplexity"]
    figures = summary(workdir)
    for part in ("text, ", f"validation {figures['validation_perplexity']:.2f}", f"test {tested:.2f}"):
        assert part in of_file.card
    generated = call(capsys, "eval", *arguments[:2], "--generate", "w1 w3", "--words", "9", "--temperature", "0")[1]
    assert of_file.generate("w1 w3", length=9, temperature=0) == generated.rstrip("\n")

    call(capsys, "eval", *arguments, "--checkpoint", "last", "--sparsity", "0.75")
    last = bwds.load(file)
    assert last.parameters_sha256 == figures["parameters_sha256"]
    assert last.config == dataclasses.replace(of_file.config, sparsity=0.75)
    assert "not measured" in last.card


def test_a_dynamic_model_is_evaluated_at_another_sparsity(finished, capsys):
    workdir = finished[0]
    _, own, _ = call(capsys, "eval", "--workdir", str(workdir))
    kept = (workdir / "eval_test.json").read_bytes()
    assert call(capsys, "eval", "--workdir", str(workdir), "--sparsity", "0.5")[1] == own
    _, other, _ = call(capsys, "eval", "--workdir", str(workdir), "--sparsity", "0.75")
    written = json.loads((workdir / "eval_test_sparsity_0.75.json").read_text())
    assert other.splitlines()[-1] == f"test perplexity: {written['perplexity']:.2f}"
    assert other.splitlines()[-1] != own.splitlines()[-1]
    assert (written["density"], written["sparsity"]) == (0.25, 0.75)
    assert (workdir / "eval_test.json").read_bytes() == kept


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--generate", "w1 zebra"], "'zebra' is not in the vocabulary"),
        (["--generate", "w1", "--top-p", "1.5"], "top_p is 1.5"),
        (["--generate", "w1", "--temperature", "-1"], "temperature is -1.0"),
        (["--generate", "w1", "--words", "0"], "number of tokens is 0"),
        (["--generate", "w1", "--seed", str(2**32)], "seed is 4294967296"),
        (["--generate", "w1", "--ban", "zebra"], "no 'zebra' to ban"),
        (["--generate", "w1", "--export", "m"], "Both --generate and --export"),
        (["--export", "s3://bucket/m"], "--export is 's3://bucket/m', an address; only files"),
        (["--export", ""], "--export is empty; give the name of a file"),
        (["--sparsity", "1"], "sparsity is 1.0"),
        (["--split", "dev"], "dev"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--sparsity", "0.5", "1"], "sparsity is 1.0"),
        (
            ["--sparsity", "0.5", "0.7", "--generate", "w1"],
            "--sparsity is 0.5 0.7; a text, or a file, is of one",
        ),
        (["--data.directory", "/nowhere"], "/nowhere"),
        (["--data.directory", "~nobody-of-that-name"], "~nobody-of-that-name"),
        (["--workdir", "gs://bucket/run"], "'gs://bucket/run', an address"),
    ],
)
def test_mistakes_in_an_evaluation_are_one_sentence(finished, capsys, arguments, part):
    assert_refused(call(capsys, "eval", "--workdir", str(finished[0]), *arguments), part)


def test_a_folder_without_a_run_or_checkpoint_is_named(finished, capsys, tmp_path):
    assert_refused(call(capsys, "eval"), "--workdir")
    assert_refused(call(capsys, "eval", "--workdir", str(tmp_path)), "There is no run in")
    assert_refused(call(capsys, "eval", "--workdir", __file__), "is a file; give the folder of a run")
    for name in ("config.json", "vocabulary.txt"):
        (tmp_path / name).write_bytes((finished[0] / name).read_bytes())
    for checkpoint in ("best", "last"):
        result = call(capsys, "eval", "--workdir", str(tmp_path), "--checkpoint", checkpoint)
        assert_refused(result, "There is no checkpoint in")


def test_a_damaged_checkpoint_is_named(finished, capsys, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    for path in (tmp_path / "run/checkpoints/best").rglob("*"):
        if path.is_file() and path.name != "sha256.txt":
            path.write_bytes(b"damaged")
    assert_refused(call(capsys, "eval", "--workdir", str(tmp_path / "run")), "checkpoints/best", "damaged")


def test_a_loss_that_is_not_finite_ends_with_code_1(capsys, tmp_path):
    corpus = tiny_run.write_corpus(tmp_path / "text")
    config = tiny_run.config(corpus, method="dense", name="sgd", learning_rate=3e38, clip_norm=3e38)
    code, _, err = call(capsys, "train", *tiny_run.arguments(config, tmp_path / "run"))
    assert code == 1
    assert "Traceback" not in err
    assert re.search(r"^error: .* step \d+", err, re.M)


def test_a_command_for_the_shell_can_be_pasted(tmp_path, monkeypatch):
    command = cli.shell_command("eval", ["--workdir", "a folder's"], script=ROOT / "eval.py")
    monkeypatch.chdir(tmp_path)
    elsewhere = cli.shell_command("eval", [], script=ROOT / "eval.py")
    assert shlex.split(command)[-2:] == ["--workdir", "a folder's"]
    assert Path(shlex.split(elsewhere)[1]) == ROOT / "eval.py"
    version = subprocess.run(
        f"{shlex.split(elsewhere)[0]} -c 'import sys; print(sys.executable)'",
        shell=True,
        text=True,
        capture_output=True,
    )
    assert Path(version.stdout.strip()) == Path(sys.executable)


def test_without_a_script_it_is_the_installed_command_of_this_python(tmp_path, monkeypatch):
    """A command that lies elsewhere on the path is another installation's."""
    for folder, words in ((tmp_path / "ours", ["bwds"]), (tmp_path / "theirs", ["-m", "bwds"])):
        folder.mkdir()
        (folder / "bwds").touch(mode=0o755)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setattr(sys, "executable", str(tmp_path / "ours" / "python"))
        assert shlex.split(cli.shell_command("eval", ["a b"]))[-len(words) - 2 :] == [*words, "eval", "a b"]
