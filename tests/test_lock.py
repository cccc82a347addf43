"""A folder is that of one run at a time, whatever became of the one before."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import train as train_script
from bwds import cli
from bwds.training.lock import locked

HOLD = """
import pathlib, sys, time
from bwds.training.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_run_is_refused(tmp_path, capsys):
    """At the command line in one sentence, with the process that holds the folder; it leaves all as it is."""
    workdir = tmp_path / "run"
    with locked(workdir):
        before = sorted(workdir.iterdir())
        assert cli.run(train_script.main, "train.py", ["--train.steps", "1", "--workdir", str(workdir)]) == 2
        assert sorted(workdir.iterdir()) == before
    error = capsys.readouterr().err
    assert f"A run is going on in '{workdir}' (process {os.getpid()} on " in error
    assert "Traceback" not in error


def test_the_lock_ends_with_its_context(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError), locked(tmp_path):
            raise RuntimeError


def test_the_lock_of_a_killed_process_is_gone(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ValueError, match=f"process {other.pid} on "), locked(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with locked(tmp_path):
            pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        assert "without locks (Function not implemented)" in capsys.readouterr().err


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"), locked(tmp_path / "file"):
        pass
