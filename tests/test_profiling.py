"""A trace of training steps is where the tools look for it, and changes nothing."""

import json

import pytest
import tiny_run

from bwds.training import log, train
from bwds.training.profiling import StepTrace


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_run.config(tiny_run.write_corpus(tmp_path_factory.mktemp("text")), cell="qrnn")


@pytest.fixture(scope="module")
def untraced(config, tmp_path_factory):
    """The folder of the same run without a trace."""
    workdir = tmp_path_factory.mktemp("run")
    train(config, workdir, progress=False)
    return workdir


@pytest.mark.parametrize("steps", [2, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_run_with_a_trace_is_the_same(config, untraced, tmp_path, steps):
    train(config, tmp_path, profile=steps, progress=False)
    summaries = [json.loads((workdir / "summary.json").read_text()) for workdir in (tmp_path, untraced)]
    assert len({summary["parameters_sha256"] for summary in summaries}) == 1
    (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    content = trace.read_bytes()
    assert b"train_step" in content
    # The number of a step is with its name.
    assert b"step_num" in content
    assert not (untraced / "plugins").exists()


def test_one_process_of_several_records(config, tmp_path, monkeypatch, capsys):
    """They share the folder, and those of one machine the name of the file in it."""
    monkeypatch.setattr(log, "is_first", lambda: False)
    train(config, tmp_path, profile=2, progress=False)
    assert (tmp_path / "summary.json").exists()
    assert not (tmp_path / "plugins").exists()
    assert "nothing was traced" not in capsys.readouterr().err


def test_a_trace_of_nothing_is_said(tmp_path, capsys):
    for steps, told in ((0, ""), (2, "warning: nothing was traced")):
        trace = StepTrace(tmp_path, start=10, steps=steps)
        for step in range(10, 13):
            trace.before(step)
            trace.after(step + 1, None)
        trace.close()
        assert capsys.readouterr().err.startswith(told)


def test_the_steps_after_the_warm_up_are_recorded(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("jax.profiler.start_trace", lambda folder: calls.append(("start", folder, step)))
    monkeypatch.setattr("jax.profiler.stop_trace", lambda: calls.append(("stop", step)))
    trace = StepTrace(tmp_path, start=10, steps=2)
    for step in range(10, 20):
        trace.before(step)
        trace.after(step + 1, None)
    trace.close()
    # Steps 14 and 15: the first three, 11 to 13, are not in it.
    assert calls == [("start", tmp_path, 13), ("stop", 14)]
