"""Two processes with four devices each train as one process with one device does; all on the loopback interface."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_run

import eval as eval_script
from bwds.training import train
from bwds.training.devices import DistributedConfig
from bwds.training.metrics import read_metrics
from bwds.training.processes import connect, failing_at_once
from tests.faults.campaign import unfinished
from tests.faults.runs import environment

ROOT = Path(__file__).parent.parent
SECONDS = 300
"""After so long a process is taken for hung."""
HEARTBEAT = 10
LOADED = 5
"""Seconds by which other work on the machine may delay an end."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    corpus = tiny_run.write_corpus(tmp_path_factory.mktemp("text"))
    # A QRNN compiles in half of the time of an LSTM.
    changes = {"cell": "qrnn", "gate_activation": "softplus", "batch_size": 8, "sequence_length": 4, "vocab_limit": 32}
    return tiny_run.config(corpus, steps=50, eval_every=25, checkpoint_every=10, learning_rate=2e-3, **changes)


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The folder of a run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    train(config, workdir, progress=False)
    return workdir


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The folder where the next pair finds what one has compiled."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def start(cache):
    """Starts two processes of train.py, or of another program; ``options`` are for one of them alone."""
    started = []

    def start(config, workdir, *mesh, options=((), ()), program=("train.py",)):
        arguments = tiny_run.arguments(config, workdir, mesh)
        arguments += ["--distributed.coordinator", free_address(), "--distributed.processes", "2"]
        env = environment(cache) | {"JAX_NUM_CPU_DEVICES": "4"}
        for i in (0, 1):
            command = [sys.executable, *program, *arguments, "--distributed.process", str(i), *options[i]]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True))
        return started[-2:]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ends(processes):
    """What each process ended with: exit code, stdout, stderr."""
    end = time.monotonic() + SECONDS
    results = []
    for process in processes:
        out, err = process.communicate(timeout=max(1.0, end - time.monotonic()))
        results.append((process.returncode, out, err))
    return results


def losses(workdir):
    path = workdir / "metrics.jsonl"
    return np.array([line["loss"] for line in read_metrics(path)]) if path.exists() else np.array([])


def wait_for(processes, condition, *, every=0.01):
    end = time.monotonic() + SECONDS
    while not condition():
        assert all(process.poll() is None for process in processes), ends(processes)
        assert time.monotonic() < end
        time.sleep(every)


def wait_for_lines(processes, workdir, count):
    wait_for(processes, lambda: len(losses(workdir)) >= count)


def written(workdir):
    """What each line of the metrics tells of, and how many files of events there are."""
    lines = [(line["step"], line["split"]) for line in read_metrics(workdir / "metrics.jsonl")]
    return lines, len(list(workdir.glob("events.*")))


def finished(processes):
    """Standard output of both, which must have ended well."""
    (code, out, err), (other_code, other_out, other_err) = ends(processes)
    assert (code, other_code) == (0, 0), err + other_err
    return out, other_out


def test_two_processes_are_one_run(config, alone, start, tmp_path, capsys):
    """Stopped by a signal to the second process, resumed by both with another mesh; losses of 50 steps to 1e-5."""
    workdir = tmp_path / "run"
    both = start(config, workdir, "--mesh.data", "8")
    wait_for_lines(both, workdir, 3)
    both[1].send_signal(signal.SIGTERM)
    out, _ = finished(both)
    assert "its state is saved" in out
    # Only one of the two processes writes.
    lines, files = written(workdir)
    whole, _ = written(alone)
    assert (lines, files) == (whole[: len(lines)], 1)
    assert len(lines) < len(whole) == 52

    out, other_out = finished(start(config, workdir, "--mesh.model", "2"))
    assert "validation perplexity" in out
    # Only the first process speaks of results.
    assert "perplexity" not in other_out
    assert written(workdir) == (whole, 2)
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)
    summary, expected = (json.loads((folder / "summary.json").read_text()) for folder in (workdir, alone))
    assert summary["validation_perplexity"] == pytest.approx(expected["validation_perplexity"], rel=1e-5)

    # One process reads what two wrote.
    eval_script.main(["--workdir", str(workdir)])
    assert "test perplexity" in capsys.readouterr().out


SIGNAL_IN_THE_SUMMARY = """
import os, signal, sys
from bwds import cli
from bwds.training import summary
measure = summary.compare_decode_speed
def signal_and_measure(*arguments):
    os.kill(os.getpid(), signal.SIGTERM)
    return measure(*arguments)
summary.compare_decode_speed = signal_and_measure
import train
sys.exit(cli.run(train.main, "train.py", sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_signal_to_the_first_in_the_summary_ends_both_well(config, start, tmp_path):
    for out in finished(start(config, tmp_path, "--mesh.data", "8", program=("-c", SIGNAL_IN_THE_SUMMARY))):
        assert f"Stopped after the last step; all is saved in {tmp_path}." in out
    assert not (tmp_path / "summary.json").exists()
    out, _ = finished(start(config, tmp_path, "--mesh.data", "8"))
    assert "The run is finished" in out


@pytest.mark.slow
def test_when_one_dies_the_other_ends_and_both_resume(config, alone, start, tmp_path):
    """Killed: the second, the first, and one inside a checkpoint write. Parameters are those of a run never stopped."""
    workdir, options = tmp_path / "run", ("--mesh.data", "8", "--distributed.heartbeat", str(HEARTBEAT))
    for victim, steps in ((1, 13), (0, 23), (1, None)):
        began, both = time.time(), start(config, workdir, *options)
        if steps is None:
            wait_for(both, lambda began=began: unfinished(workdir, since=began), every=0.0)
        else:
            wait_for_lines(both, workdir, steps)
        both[victim].kill()
        killed = time.monotonic()
        code, _, err = ends(both)[1 - victim]
        assert time.monotonic() - killed < HEARTBEAT + LOADED
        assert unfinished(workdir, since=began) or steps
        # JAX's runtime ends it and gives no chance to say more; or we do, where a computation fails first.
        told = {-signal.SIGABRT: "another task died", 1: "another process has ended; start all again"}
        assert told[code] in err, err
    finished(start(config, workdir, *options))
    assert written(workdir)[0] == written(alone)[0]
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)
    finished(start(config, tmp_path / "whole", *options))
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "whole")]
    assert summaries[0]["parameters_sha256"] == summaries[1]["parameters_sha256"]


def test_sigterm_ends_a_process_that_does_not_train_yet():
    """As while it prepares data."""
    code = f"""
import time
from bwds.training.devices import DistributedConfig
from bwds.training.processes import connect
connect(DistributedConfig("{free_address()}", 1, 0))
print("connected", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "connected\n"
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM


@pytest.mark.slow
def test_what_the_first_does_alone_may_take_long():
    """Collectives on CPU devices give up after 30 seconds."""
    code = f"""
import sys, time
from bwds.training.devices import DistributedConfig
from bwds.training.processes import connect, first_alone
connect(DistributedConfig("{free_address()}", 2, int(sys.argv[1])))
print(first_alone(lambda: time.sleep(40) or "done"))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(i)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for i in (0, 1)
    ]
    out, other = finished(processes)
    assert (out.splitlines()[-1], other.splitlines()[-1]) == ("done", "None")


def test_processes_must_be_started_alike(config, start, tmp_path):
    """Otherwise they would wait for each other, or train on a mixture."""
    options = ((), ("--optim.learning-rate", "0.5"))
    for code, _, err in ends(start(config, tmp_path / "run", options=options)):
        assert code == 2
        assert "The configuration differs between process 0 and 1" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mesh.model", "2"), "The mesh differs between process 0 and 1"),
        pytest.param(("--workdir", "elsewhere"), "is not the one that process 0 sees", marks=pytest.mark.slow),
    ],
)
def test_one_mesh_and_one_folder(config, start, tmp_path, options, message):
    """Local disks under one name are two folders; training would find that out at its first checkpoint."""
    options = tuple(str(tmp_path / "elsewhere") if word == "elsewhere" else word for word in options)
    for code, _, err in ends(start(config, tmp_path / "run", options=((), options))):
        assert code == 2, err
        assert message in err
    assert not (tmp_path / "elsewhere").exists()


def test_errors_of_the_first_process_end_all(config, start, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    for code, _, err in ends(start(config, tmp_path / "run")):
        assert code == 2
        assert "has metrics.jsonl but no config.json" in err


def test_an_error_of_another_process_ends_all(config, start, tmp_path):
    """At once, and not when the first one is missed."""
    options = ((), ("--data.directory", str(tmp_path / "nowhere")))
    for code, _, err in ends(start(config, tmp_path / "run", options=options)):
        assert code == 2, err
        assert f"{tmp_path}/nowhere" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_damaged_line_in_the_metrics_ends_all(config, start, tmp_path):
    """Only the first process reads them."""
    workdir = tmp_path / "run"
    both = start(config, workdir)
    wait_for_lines(both, workdir, 1)
    both[0].send_signal(signal.SIGTERM)
    finished(both)
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write("damaged\n")
    for code, _, err in ends(start(config, workdir)):
        assert code == 2, err
        assert "has a line that is not JSON" in err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes.\nmore"),
            "There is not enough memory (RESOURCE_EXHAUST",
        ),
        (MemoryError(), "There is not enough memory"),
        (
            jax.errors.JaxRuntimeError("INTERNAL: no answer\nmore"),
            "INTERNAL: no answer. Most likely another process has",
        ),
        (OSError("no room"), "no room"),
    ],
)
def test_what_ends_one_of_several_processes_is_said(error, message, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as stop, failing_at_once():
        raise error
    told = capsys.readouterr().err
    assert stop.value.code == 1
    assert told.startswith(f"error: {message}")
    assert ("Most likely" in told) == ("Most likely" in message)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JAX_COORDINATOR_ADDRESS", "host:1"),
        ("TPU_WORKER_HOSTNAMES", "a,b"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("OMPI_COMM_WORLD_SIZE", "2"),
    ],
)
def test_the_environment_says_that_there_are_others(variable, value, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **_: calls.append(arguments))
    for name in ("JAX_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    connect(DistributedConfig())
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    connect(DistributedConfig())
    assert calls == []
    monkeypatch.setenv(variable, value)
    connect(DistributedConfig())
    assert calls == [(None, None, None)]


def test_others_that_cannot_be_found(monkeypatch):
    def fail(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(ValueError, match=r"cannot be found .*; give distributed\.coordinator"):
        connect(DistributedConfig(auto=True))
    with pytest.raises(ValueError, match="Process 1 cannot join host:1"):
        connect(DistributedConfig("host:1", 2, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "host:1"}, "go together"),
        ({"coordinator": "host:1", "processes": 2, "process": 2}, r"process is 2; it must be from 0 to 1"),
        ({"coordinator": "host:1", "processes": 2, "process": 0, "auto": True}, "do not name them"),
        ({"heartbeat": 0}, "heartbeat is 0"),
    ],
)
def test_mistakes_in_options(options, message):
    with pytest.raises(ValueError, match=message):
        DistributedConfig(**options)
