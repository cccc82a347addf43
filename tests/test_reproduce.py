"""How the cells of the comparison are run: to the end, once, on from where one was stopped, and side by side."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.quality import reproduce
from benchmarks.quality.cell_lines import read_line, result_path
from benchmarks.quality.grid import Cell
from benchmarks.quality.reproduce import course, keep, run_cell, state
from benchmarks.quality.stopwatch import Stopwatch
from benchmarks.report.results import COLUMNS
from bwds.training import loop
from bwds.training.metrics import METRICS_FILE
from bwds.training.signals import InterruptedRunError
from bwds.training.step import NonFiniteError

ROOT = Path(__file__).parents[1]


def tiny(**options):
    """A cell of 6 steps with a checkpoint every second."""
    sizes = {"model.hidden_size": 32, "model.block_size": 16, "model.num_layers": 1, "model.sparsity": 0.5}
    data = {"data.dataset": "text", "data.batch_size": 4, "data.sequence_length": 8, "data.eval_batch_size": 2}
    steps = {"train.steps": 6, "train.eval_every": 3, "train.checkpoint_every": 2, "train.log_every": 1}
    return Cell("ptb-lstm-small", "tiny", 0, sizes | data | steps | options)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """Folder and line of a cell that nothing stopped."""
    folder = tmp_path_factory.mktemp("cell")
    return folder, run_cell(tiny(), folder / "runs", folder / "results", directory=str(corpus))


def test_a_finished_cell_has_a_line_with_its_course(finished):
    folder, result = finished
    line = json.loads((folder / "results/ptb-lstm-small/tiny/seed0.json").read_text())
    assert line == result
    counted = line["multiply_adds"]
    # 8 weight blocks of 16 x 16 of each of two matrices; a score for each of 16 blocks takes 32; 31 words and <eos>.
    assert counted["blocks"] == 2 * 8 * 16 * 16
    assert counted["gates"] == 2 * 32 * 16
    assert counted["total"] == counted["blocks"] + counted["gates"] + counted["softmax"]
    assert line["relative_cost"] == counted["total"] / counted["dense"]
    assert counted["preset_dense"] == 2 * 8 * 256**2 + counted["softmax"] * 256 // 32
    assert line["realised_density"] == pytest.approx(0.5)
    assert 1 < line["test_perplexity"] < 100
    assert line["wall_seconds"] > 0
    assert line["decode"]["model_us"] > 0 < line["decode"]["dense_us"]
    nested = {f"{name}.{key}" for name in ("multiply_adds", "decode") for key in line[name]}
    assert set(COLUMNS) - {"failed"} <= line.keys() | nested
    assert [step for step, _ in line["validation_curve"]] == [3, 6]
    assert min(value for _, value in line["validation_curve"]) == pytest.approx(line["validation_perplexity"], abs=1e-3)
    assert sorted(line["gradient_norm_quantiles"]) == line["gradient_norm_quantiles"]
    assert [path.name for path in (folder / "results").rglob("*") if path.is_file()] == ["seed0.json"]
    assert state(tiny(), folder / "runs", folder / "results") == f"done (test {line['test_perplexity']:.2f})"


def test_test_perplexity_is_that_of_eval(finished, capsys):
    import eval as eval_script

    folder, result = finished
    eval_script.main(["--workdir", str(folder / "runs" / tiny().name)])
    assert capsys.readouterr().out.endswith(f"test perplexity: {result['test_perplexity']:.2f}\n")


def test_a_finished_cell_is_never_overwritten(finished):
    folder, _ = finished
    before = {path: path.read_bytes() for path in (folder / "results").rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="remove it"):
        keep(result_path(tiny(), folder / "results"), {})
    assert before == {path: path.read_bytes() for path in (folder / "results").rglob("*") if path.is_file()}


def test_the_command_skips_finished_cells(finished, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.setattr(reproduce, "RUNS", folder / "runs")
    monkeypatch.setattr(reproduce, "RESULTS", folder / "results")
    monkeypatch.setattr(reproduce, "matching", lambda patterns: [tiny()])
    monkeypatch.setattr(reproduce, "run_cell", lambda *_, **__: pytest.fail("it ran"))
    reproduce.main(["tiny"])
    assert "ptb-lstm-small/tiny/seed0: skipped" in capsys.readouterr().out


def test_list_runs_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(reproduce, "RUNS", tmp_path)
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    reproduce.main(["--list", "ptb-qrnn/dynamic-linear-0.9/*"])
    assert capsys.readouterr().out.split() == ["missing", "ptb-qrnn/dynamic-linear-0.9/seed0"]
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_cell_goes_on_and_ends_the_same(finished, corpus, tmp_path, monkeypatch):
    read = loop.read

    def read_and_stop(run, step, *rest):
        read(run, step, *rest)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    runs, results = tmp_path / "runs", tmp_path / "results"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "read", read_and_stop)
        with pytest.raises(InterruptedRunError):
            run_cell(tiny(), runs, results, directory=str(corpus))
    assert state(tiny(), runs, results) in ("at step 3 of 6", "at step 4 of 6")
    assert not results.exists()
    result = run_cell(tiny(), runs, results, directory=str(corpus))
    for key in ("parameters_sha256", "validation_perplexity", "test_perplexity"):
        assert result[key] == finished[1][key]
    assert len(json.loads((runs / "ptb-lstm-small/tiny/seed0.processes.json").read_text())) == 2


def test_wall_time_is_not_known_after_a_kill(tmp_path):
    path = tmp_path / "processes.json"
    watch = Stopwatch(path, "abc", False)
    with watch:
        pass
    assert watch.summary()["wall_seconds"] < 1
    watch.__enter__()
    assert watch.summary() == {"wall_seconds": None, "revision": "abc", "modified": False}
    with Stopwatch(path, "def", True):
        pass
    assert watch.summary() == {"wall_seconds": None, "revision": "abc, def", "modified": True}


def test_a_line_of_other_options_is_not_taken_for_the_cell(finished):
    folder, _ = finished
    other = tiny(**{"optim.learning_rate": 0.1})
    for refuse in (lambda: read_line(other, folder / "results"), lambda: state(other, folder, folder / "results")):
        with pytest.raises(ValueError, match=r"'optim.learning_rate': 0.1} under this name"):
            refuse()


def test_training_that_fails_is_a_result(monkeypatch, tmp_path):
    def fail(config, workdir, **_):
        workdir.mkdir(parents=True)
        (workdir / METRICS_FILE).write_text('{"step": 5, "split": "train", "gradient_norm": 7.0}\n')
        raise NonFiniteError(
            f"The loss is nan at step 7. There is no checkpoint yet in {workdir}. Training stops here."
        )

    monkeypatch.setattr(reproduce, "train", fail)
    result = reproduce.run_cell(tiny(), tmp_path / "runs", tmp_path / "results")
    assert result["failed"] == "The loss is nan at step 7"
    assert "test_perplexity" not in result
    assert result["gradient_norm_quantiles"] == [7.0, 7.0, 7.0]
    assert reproduce.state(tiny(), tmp_path / "runs", tmp_path / "results") == "failed"


def test_the_course_of_a_run_is_that_of_its_metrics(tmp_path):
    assert course(tmp_path) == {"validation_curve": [], "gradient_norm_quantiles": None}
    lines = [{"step": i, "split": "train", "gradient_norm": float(i)} for i in range(1, 101)]
    lines[50:50] = [{"step": 50, "split": "valid", "perplexity": 200.12345}]
    lines.append({"step": 100, "split": "valid", "perplexity": 150.0})
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = course(tmp_path)
    assert found["validation_curve"] == [[50, 200.123], [100, 150.0]]
    assert found["gradient_norm_quantiles"] == [50.5, 95.05, 100.0]


# Side by side ---------------------------------------------------------------------------------------------------------


CELL = """
import os, signal, sys, time
from pathlib import Path

def say(word):
    with Path("log").open("a") as file:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        print(word, sys.argv[-1], cores, file=file)

def wait_for(*words):
    until = time.monotonic() + 30
    while time.monotonic() < until and not all(word in Path("log").read_text() for word in words):
        time.sleep(0.01)

def stop(*_):
    say("stopped")
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
say("began")
name = sys.argv[-1].split("/")[1]
"""
"""The beginning of the program that the tests below run instead of a cell; its last argument is the cell's name."""


@pytest.fixture
def side_by_side(monkeypatch, tmp_path):
    """A function that runs a program for each of some variants, two at a time, and returns what they said."""

    def run(program, *variants):
        (tmp_path / "cell.py").write_text(CELL + program)
        chosen = [Cell("ptb-lstm-small", name, 0, {}) for name in variants]
        monkeypatch.setattr(reproduce, "matching", lambda _: chosen)
        with pytest.raises(SystemExit) as ended:
            reproduce.main(["--jobs", "2", "--data-directory", "text", "*"])
        found = [line.split(maxsplit=2) for line in (tmp_path / "log").read_text().splitlines()]
        return ended.value.code, [(word, name.split("/")[1], cores) for word, name, cores in found]

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "SCRIPT", tmp_path / "cell.py")
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(reproduce, "time", SimpleNamespace(sleep=lambda _: time.sleep(0.01)))
    yield run
    signal.signal(signal.SIGTERM, before)


def test_cells_run_side_by_side_in_order_and_a_failure_stops_none(side_by_side, capsys, tmp_path):
    program = """
assert sys.argv[1:-1] == ["--data-directory=text"]
if name == "a":
    wait_for("began ptb-lstm-small/c/")
say("ended")
sys.exit(name == "b")
"""
    done = tmp_path / "results/ptb-lstm-small/done/seed0.json"
    done.parent.mkdir(parents=True)
    done.write_text('{"options": {}}\n')
    code, said = side_by_side(program, "a", "done", "b", "c", "d")
    assert code == 1
    assert capsys.readouterr().err == "error: these cells ended with an error: ptb-lstm-small/b/seed0 (exit code 1)\n"
    order = [(word, name) for word, name, _ in said]
    assert sorted(name for word, name in order if word == "ended") == ["a", "b", "c", "d"]
    # Two at a time: the third waits for the second, and the last for one of those that are left.
    assert {name for _, name in order[:2]} <= {"a", "b"}
    assert order.index(("ended", "b")) < order.index(("began", "c")) < order.index(("ended", "a"))
    assert order.index(("began", "d")) > min(order.index(("ended", name)) for name in "ac")
    if shutil.which("taskset"):
        own = sorted(os.sched_getaffinity(0))
        cores = {name: found for _, name, found in said}
        assert set(cores.values()) == {str(own[i::2] or own) for i in range(2)}


def test_a_signal_to_stop_reaches_the_cells_and_begins_no_other(side_by_side):
    program = """
wait_for("began ptb-lstm-small/a/", "began ptb-lstm-small/b/")
if name == "a":
    os.kill(os.getppid(), signal.SIGTERM)
time.sleep(30)
say("ended")
"""
    code, said = side_by_side(program, "a", "b", "c")
    assert code == 0
    assert sorted((word, name) for word, name, _ in said) == [
        ("began", "a"),
        ("began", "b"),
        ("stopped", "a"),
        ("stopped", "b"),
    ]
