"""benchmarks/hardware.py: parts in order until the time is up, whole lines whenever it ends, a page that is true."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.environment import environment
from benchmarks.lines import case_of
from benchmarks.measure import hardware as script
from benchmarks.measure.correctness import right_before
from benchmarks.measure.hardware_page import page, pays
from benchmarks.measure.hardware_parts import LARGE, SMALL, Part
from benchmarks.quality.paper_table import one_step

ROOT = Path(__file__).parents[1]

PART = """
import json, sys, time
from pathlib import Path

name, seconds, code = sys.argv[1].split(",")
output = Path(next(a for a in sys.argv if a.startswith("--output=")).removeprefix("--output="))
(output.parent / "began").open("a").write(name + " ")
with output.open("a") as file:
    file.write(json.dumps({"benchmark": "environment", "platform": "cpu", "processor": "P", "cores": 2, "jax": "0",
                           "python": "3"}) + "\\n")
    file.flush()
time.sleep(float(seconds))
with output.open("a") as file:
    file.write(json.dumps({"benchmark": "correct", "what": name, "right": code == "0"}) + "\\n")
sys.exit(int(code))
"""
"""What stands in for a benchmark: its name, the seconds it takes and its exit code are the argument."""


@pytest.fixture
def hardware(monkeypatch, tmp_path):
    """The module, with parts of this test's own and a second to spare."""
    hardware = script
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/__init__.py").touch()
    (tmp_path / "benchmarks/part.py").write_text(PART)
    monkeypatch.setattr(hardware, "ROOT", tmp_path)
    monkeypatch.setattr(hardware, "platform", lambda: "cpu")
    monkeypatch.setattr(hardware, "SPARE", 0.5)
    monkeypatch.setattr(hardware, "LEAST", 1.0)
    before = signal.getsignal(signal.SIGTERM)
    yield hardware
    signal.signal(signal.SIGTERM, before)


def run(hardware, monkeypatch, tmp_path, parts, *arguments, minutes=1.0):
    """Lines, the page, and the parts that began."""
    made = tuple(Part(name, f"tells {name}", 20, f"part {name},{how}") for name, how in parts.items())
    monkeypatch.setattr(hardware, "SMALL", made)
    hardware.main([f"--minutes={minutes}", f"--output={tmp_path / 'out'}", *arguments])
    lines = [json.loads(line) for line in (tmp_path / "out/lines.jsonl").read_text().splitlines()]
    began = (tmp_path / "out/began").read_text().split()
    return lines, (tmp_path / "out/summary.md").read_text(), began


def test_a_part_that_fails_is_reported_and_the_next_runs(hardware, monkeypatch, tmp_path):
    parts = {"a": "0,0", "b": "0,3", "c": "0,0"}
    lines, page, began = run(hardware, monkeypatch, tmp_path, parts)
    assert began == ["a", "b", "c"]
    ended = {line["part"]: line["exit_code"] for line in lines if line["benchmark"] == "part"}
    assert ended == {"a": 0, "b": 3, "c": 0}
    assert "- b: failed with status 3 (tells b)" in page
    assert "- 2 of 3 cases right" in page
    assert '- wrong: {"what": "b", "right": false}' in page
    # The same command goes on with what has not ended well.
    _, page, began = run(hardware, monkeypatch, tmp_path, parts | {"b": "0,0"})
    assert began == ["a", "b", "c", "b"]
    assert "- b: done in" in page


def test_the_time_is_kept(hardware, monkeypatch, tmp_path):
    start = time.monotonic()
    lines, page, began = run(hardware, monkeypatch, tmp_path, {"a": "0,0", "slow": "60,0", "c": "0,0"}, minutes=0.08)
    assert time.monotonic() - start < 10
    assert began == ["a", "slow"]
    assert [line["exit_code"] for line in lines if line["benchmark"] == "part"] == [0, None]
    assert "- slow: cut off after" in page
    assert "- c: not run" in page


def test_parts_are_chosen_by_name(hardware, monkeypatch, tmp_path, capsys):
    parts = {"a": "0,0", "b": "0,0", "c": "0,0"}
    assert run(hardware, monkeypatch, tmp_path, parts, "--only", "c", "a")[2] == ["a", "c"]
    assert run(hardware, monkeypatch, tmp_path, parts, "--after", "a")[2] == ["a", "c", "b"]
    hardware.main(["--list"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-3:]] == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"no part 'd' here; the parts are a, b, c\."):
        hardware.main(["--only", "d"])
    with pytest.raises(ValueError, match="--minutes is 0;"):
        hardware.main(["--minutes", "0"])


def test_half_a_line_of_a_killed_process_is_dropped(hardware, monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/lines.jsonl").write_text(
        '{"benchmark": "part", "part": "a", "exit_code": 0, "seconds": 1}\n{"benc'
    )
    lines, page, began = run(hardware, monkeypatch, tmp_path, {"a": "0,0", "b": "0,0"})
    assert began == ["b"]
    assert [line["benchmark"] for line in lines] == ["part", "environment", "correct", "part"]
    assert "- a: done in 1 s" in page


def test_cases_that_were_right_here_are_not_run_again(tmp_path):
    """Those of this revision on such a device; of a case with two lines the page counts the later one."""
    here, path = environment(), tmp_path / "lines.jsonl"
    case = {"benchmark": "correct", "implementation": "xla", "what": "product", "rows": 1, "grid": [3, 4]}
    wrong = case | {"rows": 4, "right": False, "failed": "ValueError"}
    lines = [
        {"benchmark": "environment", **here, "revision": "another"},
        case | {"rows": 40, "right": True},
        {"benchmark": "environment", **here},
        case | {"right": True, "errors": {"y": 1e-7}},
        wrong,
        {"benchmark": "part", "part": "right", "exit_code": None, "seconds": 1.0},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert right_before(str(path)) == {case_of(case)}
    assert right_before(None) == right_before(str(tmp_path / "none")) == set()
    text = page([*lines, case | {"rows": 4, "right": True}], [])
    assert "3 of 3 cases right" in text
    assert "wrong" not in text


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process whose parent was killed")
def test_no_part_survives_it(tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, ROOT / "benchmarks/hardware.py", "--only", "right", "--output", output]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        children, until = "", time.monotonic() + 120
        while not (output / "lines.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert len(children) == 1
    until = time.monotonic() + 30
    while Path(f"/proc/{children[0]}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{children[0]}").exists()


@pytest.mark.parametrize("sign", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_the_part_and_leaves_a_page(sign, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, ROOT / "benchmarks/hardware.py", "--only", "right", "--output", output]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 120
        while not (output / "lines.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(sign)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + sign, said
    for line in (output / "lines.jsonl").read_text().splitlines():
        json.loads(line)
    assert "- right: not run" in (output / "summary.md").read_text()


def test_from_which_width_on_skipping_pays():
    def line(hidden, sparsity, over_dense, over_other=9.0):
        ratios = {"speedup_over_dense": over_dense, "speedup_over_pytorch": over_other}
        return {
            "benchmark": "model_decode",
            "batch": 1,
            "dtype": "float32",
            "hidden": hidden,
            "sparsity": sparsity,
        } | ratios

    assert pays([]) is None
    lines = [line(512, 0.5, 0.9), line(1024, 0.5, 1.1), line(512, 0.9, 1.2), line(1024, 0.9, 2.0, over_other=0.9)]
    assert pays(lines) == (
        "Skipping pays at sparsity 0.5 from a width of 1024 on, but at no measured width at sparsity 0.9, "
        "against the best dense model timed."
    )


def test_the_epochs_that_fit_count_all_runs_that_share_the_device(monkeypatch, tmp_path):
    logs = []
    for name, speeds in {"dense": (None, 900.0, 1000.0), "dynamic": (None, 100.0, 250.0)}.items():
        lines = [{"step": i, "split": "train", "tokens_per_second": speed} for i, speed in enumerate(speeds)]
        logs.append(tmp_path / name)
        logs[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert one_step(logs, 500) == pytest.approx(0.5 + 2.0)
    logs[0].write_text("")
    with pytest.raises(SystemExit, match="no speed is logged"):
        one_step(logs, 500)


def test_every_part_is_a_command_of_the_benchmarks():
    for parts in (LARGE, SMALL):
        assert len({part.name for part in parts}) == len(parts)
        for part in parts:
            assert importlib.util.find_spec(f"benchmarks.{part.command.split()[0]}") is not None
        # A part without a limit of its own takes the rest.
        takes_the_rest = [part.seconds is None for part in parts]
        assert takes_the_rest == sorted(takes_the_rest)
        assert any(takes_the_rest)


def test_it_goes_on_without_a_reader(hardware, monkeypatch, tmp_path):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", closefd=False) as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        _, page, began = run(hardware, monkeypatch, tmp_path, {"a": "0,0", "b": "0,0"})
    assert began == ["a", "b"]
    assert "- b: done in" in page
