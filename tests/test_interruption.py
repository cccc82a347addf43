"""Signals and kills in the middle of a run of a tiny model: none changes how it ends."""

import os
import signal
import sys

import jax
import pytest
from tiny_run import Killed, finish, lines

from bwds import decode_speed
from bwds.training import boundary, loop, train
from bwds.training.checkpoint import Checkpoints, last_checkpoints
from bwds.training.metrics import MetricsWriter
from bwds.training.sharding import Placement
from bwds.training.signals import InterruptedRunError, StopSignals


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_rest_is_the_same(finished, config, tmp_path, monkeypatch, caplog, signum, code):
    write = MetricsWriter.write

    def write_and_signal(self, **values):
        write(self, **values)
        if values["step"] == 6 and values["split"] == "train":
            os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        patch.setattr(MetricsWriter, "write", write_and_signal)
        with pytest.raises(InterruptedRunError, match="Stopped after step 6 of 16") as stopped:
            train(config, tmp_path, progress=False)
    assert stopped.value.exit_code == code
    assert signal.getsignal(signum) == before
    assert last_checkpoints(tmp_path, read_only=True).steps == [6, 4]
    with jax.log_compiles(), caplog.at_level("WARNING"):
        summary, _ = finish(config, tmp_path)
    assert "train_step" not in caplog.text
    assert summary["parameters_sha256"] == finished[1]["parameters_sha256"]
    assert lines(tmp_path) == lines(finished[0])


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
def test_other_signals_ask_for_an_end_too(monkeypatch, signum):
    """A hang-up that is ignored, as under nohup, does not. There may be nowhere to print the hint."""
    monkeypatch.setattr(sys, "stderr", None)
    before = signal.signal(signum, signal.SIG_DFL)  # The tests themselves may run under nohup.
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signum)
            assert stop.counts == signum
            assert InterruptedRunError(stop.counts).exit_code == 0
        assert signal.signal(signum, signal.SIG_IGN) == signal.SIG_DFL
        with StopSignals() as stop:
            os.kill(os.getpid(), signum)
            assert stop.requested == (signum != signal.SIGHUP)
        assert signal.getsignal(signum) == signal.SIG_IGN
    finally:
        signal.signal(signum, before)


def test_a_signal_that_comes_every_second_is_told_once(capfd):
    with StopSignals():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGXCPU)
    assert capfd.readouterr().err.count("Stopping after this step") == 1


def test_a_signal_during_an_evaluation_puts_it_off(finished, config, tmp_path, monkeypatch):
    step = boundary.evaluate

    def signal_and_evaluate(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(boundary, "evaluate", signal_and_evaluate)
        with pytest.raises(InterruptedRunError, match="Stopped after step 3 of 16"):
            train(config, tmp_path, progress=False)
    assert [line["split"] for line in lines(tmp_path)] == ["train"] * 3
    summary, _ = finish(config, tmp_path)
    assert summary["parameters_sha256"] == finished[1]["parameters_sha256"]
    assert lines(tmp_path) == lines(finished[0])


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_signal_during_the_summary_loses_nothing(finished, config, tmp_path, monkeypatch, moment, together):
    """Also with several processes, where a signal counts when all have been told of it."""
    compare, gathered, measured = decode_speed.compare_decode_speed, Placement.gathered, []

    def gather(*args):
        if moment == "before":
            os.kill(os.getpid(), signal.SIGTERM)
        return gathered(*args)

    def measure(*args):
        measured.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        return compare(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Placement, "gathered", gather)
        patch.setattr("bwds.training.summary.compare_decode_speed", measure)
        patch.setattr(loop, "StopSignals", lambda **_: StopSignals(together=together))
        with pytest.raises(InterruptedRunError, match="Stopped after the last step"):
            train(config, tmp_path, progress=False)
    # It takes a while, and who sent the signal will not wait long.
    assert measured == ([] if moment == "before" else [1])
    assert not (tmp_path / "summary.json").exists()
    assert finish(config, tmp_path)[0]["parameters_sha256"] == finished[1]["parameters_sha256"]
    assert lines(tmp_path) == lines(finished[0])


def test_a_process_killed_at_every_checkpoint_ends_the_same(finished, config, tmp_path, monkeypatch):
    """The process dies once at each checkpoint: in turns before it is written, before it is complete, or after it."""
    save, met = Checkpoints.save, []

    def save_and_die(self, step, tree, **info):
        name = (self.directory.name, step)
        if name in met:
            return save(self, step, tree, **info)
        met.append(name)
        moment = len(met) % 3
        if moment > 0:
            save(self, step, tree, **info)
        if moment > 1:
            (self.directory / str(step) / "sha256.txt").unlink()
        raise Killed

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    summary, killed = finish(config, tmp_path)
    assert killed == len(met) >= 7
    for name in ("parameters_sha256", "best_step", "validation_perplexity", "realised_density"):
        assert summary[name] == finished[1][name]
    assert lines(tmp_path) == lines(finished[0])


def test_a_damaged_last_checkpoint_costs_steps_only(finished, config, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr("bwds.training.loop.summarise", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(config, tmp_path, progress=False)
    largest = max((tmp_path / "checkpoints/last/16/state").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"")
    summary, _ = finish(config, tmp_path)
    assert "warning: the checkpoint of step 16" in capsys.readouterr().err
    assert summary["parameters_sha256"] == finished[1]["parameters_sha256"]
    assert lines(tmp_path) == lines(finished[0])
