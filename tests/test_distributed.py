"""Two processes with four devices each train as one process with one device does; all on the loopback interface."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from bwds.devices import DistributedConfig
from bwds.metrics import read_metrics
from bwds.training import train

ROOT = Path(__file__).parent.parent
SECONDS = 300
"""Until a process is taken for hung."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    corpus = tiny_run.write_corpus(tmp_path_factory.mktemp("text"))
    changes = {"gate_activation": "softplus", "batch_size": 8, "sequence_length": 4, "vocab_limit": 32}
    return tiny_run.config(corpus, steps=50, eval_every=25, checkpoint_every=20, learning_rate=2e-3, **changes)


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory):
    """The folder of a run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    train(config, workdir, progress=False)
    return workdir


@pytest.fixture
def start():
    """Starts two processes of train.py; ``options`` are for one of them alone."""
    started = []

    def start(config, workdir, *mesh, options=((), ())):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = tiny_run.arguments(config, workdir, mesh)
        arguments += ["--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.processes", "2"]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
        for i in (0, 1):
            command = [sys.executable, "train.py", *arguments, "--distributed.process", str(i), *options[i]]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started[-2:]

    yield start
    for process in started:
        process.kill()
        process.wait()


def ends(processes):
    """What each process ended with: exit code, stdout, stderr."""
    end = time.monotonic() + SECONDS
    results = []
    for process in processes:
        out, err = process.communicate(timeout=max(1.0, end - time.monotonic()))
        results.append((process.returncode, out, err))
    return results


def losses(workdir):
    return np.array([line["loss"] for line in read_metrics(workdir / "metrics.jsonl")])


def test_two_processes_are_one_run(config, alone, start, tmp_path):
    """Stopped by a signal to the second process, resumed by both with another mesh; losses of 50 steps to 1e-5."""
    workdir = tmp_path / "run"
    both = start(config, workdir, "--mesh.data", "8")
    end = time.monotonic() + SECONDS
    while not (workdir / "metrics.jsonl").exists() or len(losses(workdir)) < 3:
        assert all(process.poll() is None for process in both), ends(both)
        assert time.monotonic() < end
        time.sleep(0.01)
    both[1].send_signal(signal.SIGTERM)
    (code, out, err), second = ends(both)
    assert (code, second[0]) == (0, 0), err + second[2]
    assert "its state is saved" in out
    stopped = len(losses(workdir))
    assert stopped < 52

    (code, out, err), second = ends(start(config, workdir, "--mesh.model", "2"))
    assert (code, second[0]) == (0, 0), err + second[2]
    assert "validation perplexity" in out
    # Only the first process speaks of results.
    assert "perplexity" not in second[1]
    np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)
    summary, expected = (json.loads((folder / "summary.json").read_text()) for folder in (workdir, alone))
    assert summary["validation_perplexity"] == pytest.approx(expected["validation_perplexity"], rel=1e-5)

    # What two processes wrote, one reads.
    code = subprocess.run(
        [sys.executable, "eval.py", "--workdir", str(workdir)], cwd=ROOT, capture_output=True, text=True
    )
    assert code.returncode == 0, code.stderr
    assert "test perplexity" in code.stdout


def test_processes_must_be_started_alike(config, start, tmp_path):
    """Otherwise they would wait for each other, or train on a mixture."""
    options = ((), ("--optim.learning-rate", "0.5"))
    for code, _, err in ends(start(config, tmp_path / "run", options=options)):
        assert code == 2
        assert "The configuration differs between process 0 and 1" in err
    assert not (tmp_path / "run").exists()


def test_errors_of_the_first_process_end_all(config, start, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").touch()
    for code, _, err in ends(start(config, tmp_path / "run")):
        assert code == 2
        assert "has metrics.jsonl but no config.json" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "host:1"}, "go together"),
        ({"coordinator": "host:1", "processes": 2, "process": 2}, r"distributed.process is 2; it must be from 0 to 1"),
        ({"coordinator": "host:1", "processes": 2, "process": 0, "auto": True}, "do not name them"),
    ],
)
def test_mistakes_in_options(options, message):
    with pytest.raises(ValueError, match=message):
        DistributedConfig(**options)
    assert dataclasses.asdict(DistributedConfig())["processes"] is None
