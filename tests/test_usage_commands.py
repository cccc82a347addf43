"""``bwds usage`` and ``bwds compare`` as a user meets them, and the maps that a run writes for TensorBoard."""

import dataclasses
import io
import json
import math
import shutil

import numpy as np
import pytest
import tiny_run
from tensorboardX.proto.event_pb2 import Event

from bwds import plots
from bwds.cli import compare, run, usage
from bwds.config import Config
from bwds.data import Vocabulary
from bwds.training import train
from bwds.training.metrics import read_metrics

pytestmark = pytest.mark.pictures

FIGURES = {"used_blocks.png", "used_by_token.png", "kept_blocks.png"}


def command(module, *arguments):
    return run(module.main, f"bwds {module.__name__.rpartition('.')[2]}", list(map(str, arguments)))


def images(workdir):
    """(step, tag) of all pictures for TensorBoard."""
    found = []
    for path in workdir.glob("events.out.tfevents.*"):
        content = io.BytesIO(path.read_bytes())
        while header := content.read(12):
            event = Event.FromString(content.read(int.from_bytes(header[:8], "little")))
            content.read(4)
            for value in event.summary.value:
                if value.HasField("image"):
                    assert value.image.encoded_image_string.startswith(b"\x89PNG")
                    found.append((event.step, value.tag))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a run of four steps, evaluated twice."""
    folder = tmp_path_factory.mktemp("usage")
    config = tiny_run.config(
        tiny_run.write_corpus(folder / "text"), steps=4, eval_every=2, gate_activation="softplus", ema_decay=0.0
    )
    train(config, folder / "run", progress=False)
    return folder / "run"


def test_what_is_wrong_with_matplotlib_ends_no_run(finished, tmp_path, monkeypatch, capsys):
    def draw(*_, **__):
        raise ValueError("'nosuch' is not a valid value for backend")

    monkeypatch.setattr("bwds.plots.usage_maps", draw)
    config = Config.from_json((finished / "config.json").read_text())
    train(config, tmp_path, progress=True)
    assert (tmp_path / "summary.json").exists()
    assert images(tmp_path) == []
    assert capsys.readouterr().err.count("matplotlib ends with ValueError: 'nosuch' is not a valid value") == 1


@pytest.fixture
def dense(finished, tmp_path):
    """The same folder as if its model were dense, one evaluation ago."""
    workdir = shutil.copytree(finished, tmp_path / "dense", ignore=shutil.ignore_patterns("checkpoints", "events*"))
    config = Config.from_json((workdir / "config.json").read_text())
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, method="dense"))
    (workdir / "config.json").write_text(config.to_json())
    (workdir / "summary.json").unlink()
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if line["step"] <= 2]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


def test_usage_prints_a_table_and_writes_figures_and_a_line(finished, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(usage, finished, "--counterfactuals", "--text", "w1 w3", "--output", out) == 0
    printed, said = capsys.readouterr()
    assert {path.name for path in out.iterdir()} == FIGURES | {"usage.jsonl"}
    (line,) = (out / "usage.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert set(found["matrices"]) == {"layer_0/input", "layer_0/hidden"}
    best = min(line["loss"] for line in read_metrics(finished / "metrics.jsonl") if line["split"] == "valid")
    assert found["losses"]["own"] == pytest.approx(best, rel=1e-6)
    assert f"{'own':16} {math.exp(best):>10.2f}" in printed
    for choice in ("most frequent", "other token", "step before", "hindsight"):
        assert f"{choice:16} {math.exp(found['losses'][choice]):>10.2f}" in printed
    assert said == f"This was the valid split of text in {tiny_run_text(finished)}.\n"


def tiny_run_text(workdir):
    return json.loads((workdir / "config.json").read_text())["data"]["directory"]


def test_usage_of_another_text_is_told_and_the_kernel_is_that_of_the_machine(finished, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "run")
    config = Config.from_json((workdir / "config.json").read_text())
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, implementation="mosaic_tpu"))
    (workdir / "config.json").write_text(config.to_json())
    text = shutil.copytree(tiny_run_text(finished), tmp_path / "text")
    (text / "valid.txt").write_text("w1 w2\n" * 9)
    arguments = ("--directory", text, "--max-tokens", 20, "--output", tmp_path / "out")
    assert command(usage, workdir, *arguments) == 0
    assert "warning: this valid text is not the run's (SHA-256 " in capsys.readouterr().err


def test_a_folder_that_one_may_only_read_costs_the_figures_alone(finished, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "else")
    assert command(usage, finished, "--max-tokens", 20, "--output", tmp_path / "link") == 0
    printed, said = capsys.readouterr()
    assert "20 tokens of the valid split" in printed
    assert "warning: " in said
    assert "--output takes another folder" in said
    assert command(compare, finished, "--output", tmp_path / "link" / "a.png") == 0
    assert "--output takes another place" in capsys.readouterr().err


def test_a_sentence_tells_what_is_read_instead_and_what_is_not_drawn(capsys):
    vocabulary = Vocabulary(("<unk>", "<eos>", "a"))
    encoded = usage._encoded("a b c b " + "a " * 20, vocabulary)
    assert encoded.tolist() == [1, 2, 0, 0, 0] + 11 * [2]
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "The vocabulary has no 'b', 'c'; <unk> is read instead.",
        "The sentence has 25 tokens with <eos>; the first 16 are drawn.",
    ]


def test_a_model_in_one_file_draws_the_blocks_of_a_sentence(finished, tmp_path, capsys):
    file = shutil.copy(finished / "model.safetensors", tmp_path / "model")
    assert command(usage, file, "--text", "w1 w3") == 0
    path = tmp_path / "usage" / "kept_blocks.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"Written to {path}.\n"
    # The same picture as from the folder of its run.
    assert command(usage, finished, "--text", "w1 w3", "--max-tokens", 30, "--output", tmp_path / "out") == 0
    assert (tmp_path / "out" / "kept_blocks.png").read_bytes() == path.read_bytes()
    assert command(usage, file) == 2
    assert "comes without its text: give --text" in capsys.readouterr().err


def test_without_a_sentence_the_first_line_is_drawn():
    assert usage._first_line(np.array([7, 1, 5, 6, 7, 8, 1, 9]), 1).tolist() == [1, 5, 6, 7, 8]
    assert usage._first_line(np.array([7, 8]), 1).tolist() == [1, 7, 8]


def test_usage_without_matplotlib_tells_its_figures_and_draws_none(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plots, "is_available", lambda: False)
    out = tmp_path / "out"
    assert command(usage, finished, "--max-tokens", 30, "--output", out) == 0
    printed, said = capsys.readouterr()
    assert "30 tokens of the valid split" in printed
    assert said.endswith(
        'No figures are drawn: matplotlib is missing (pip install -e ".[plots]" in a clone of the repository).\n'
    )
    assert [path.name for path in out.iterdir()] == ["usage.jsonl"]


def test_usage_refuses_in_a_sentence(finished, dense, tmp_path, capsys):
    for arguments, message in (
        ([tmp_path], "There is no run in"),
        ([dense], "has the method 'dense', which has no gates"),
        ([finished, "--text", " "], "--text has no words"),
        ([finished, "--text", "w1 never"], "The word 'never' is not in the vocabulary, which has no <unk>"),
        ([finished, "--max-tokens", 0], "--max-tokens is 0"),
    ):
        assert command(usage, *arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said


def test_compare_tells_figures_and_differences_of_runs(finished, dense, tmp_path, capsys):
    path = tmp_path / "curves.svg"
    assert command(compare, finished, dense, "--output", path) == 0
    printed = capsys.readouterr().out
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    summary = json.loads((finished / "summary.json").read_text())
    assert lines["run"][1] == "steps" or lines["run"]
    row = lines[finished.name]
    assert row[1:5] == ["4", f"{summary['validation_perplexity']:.2f}", "0.5000", f"{summary['relative_cost']:.3f}"]
    assert row[6] == f"{summary['decode_tokens_per_second']:,.0f}"
    assert lines["dense"][1:4] == ["2", "of", "4"]
    assert lines["dense"][-1] == "-"
    assert lines["--model.method"] == ["--model.method", "dynamic", "dense"]
    assert [name for name in lines if name.startswith("--")] == ["--model.method"]
    assert path.read_text().startswith("<?xml")


def test_compare_refuses_in_a_sentence(finished, tmp_path, capsys):
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    shutil.copy(finished / "config.json", fresh)
    for arguments, message in (
        ([finished, tmp_path], "There is no run in"),
        ([fresh], "has no validation perplexity yet: it is evaluated every 2 steps"),
        ([finished, "--output", "curves.pdf"], "must end in .png or .svg"),
        ([], "run"),
    ):
        assert command(compare, *arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "Traceback" not in said


def test_runs_have_the_shortest_names_that_tell_them_apart(tmp_path):
    names = compare.short_names([tmp_path / "a" / "run", tmp_path / "b" / "run"])
    assert names == ["a/run", "b/run"]
    assert compare.short_names([tmp_path / "a", tmp_path / "a"]) == ["a (1)", "a (2)"]


def test_a_dynamic_run_maps_used_blocks_for_tensorboard_at_every_evaluation(finished):
    assert images(finished) == [(2, "valid/used_blocks"), (4, "valid/used_blocks")]


def test_a_run_without_matplotlib_says_once_that_there_are_no_maps(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plots, "is_available", lambda: False)
    train(Config.from_json((finished / "config.json").read_text()), tmp_path / "run")
    assert images(tmp_path / "run") == []
    assert capsys.readouterr().err.count("TensorBoard gets no maps of used blocks: matplotlib is missing") == 1
