"""What machines do to a run: no room on the disk, another folder, a clock that was set back, a kill in a write."""

import os
import resource
import shutil
import signal
import subprocess
import time

import pytest

from tests import tiny_run
from tests.faults.campaign import campaign, newest
from tests.faults.runs import outcome, start, wait_for

CI = "CI" in os.environ


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_run.config(tiny_run.write_corpus(tmp_path_factory.mktemp("text")), steps=12, checkpoint_every=1)


@pytest.fixture(scope="module")
def whole(config, cache, tmp_path_factory):
    """What a run leaves that nothing stopped."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert finished(config, cache, workdir)
    return outcome(workdir)


def finished(config, cache, workdir, **changes):
    process = start(tiny_run.arguments(config, workdir), cache, **changes)
    _, err = process.communicate()
    assert process.returncode == 0, err
    return err


def kill_after(step, config, cache, workdir, **changes):
    process = start(tiny_run.arguments(config, workdir), cache, **changes)
    assert wait_for(process, lambda: newest(workdir / "checkpoints" / "last") >= step)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for one checkpoint, and a function that gives it more. CI fails if it cannot be made."""
    disk = tmp_path / "disk"
    disk.mkdir()
    # In CI only: elsewhere nobody expects it of a test.
    as_root = ["sudo", "-n"] if CI and os.geteuid() else []

    def do(*command):
        return subprocess.run([*as_root, *command, str(disk)], capture_output=True, check=False).returncode == 0

    if shutil.which("mount") is None or not do("mount", "-t", "tmpfs", "-o", "size=400k,mode=777", "tmpfs"):
        (pytest.fail if CI else pytest.skip)("Only root may mount a file system.")
    yield disk, lambda: do("mount", "-o", "remount,size=50m")
    assert do("umount")


def test_a_full_disk_is_said_and_costs_nothing(small_disk, config, cache, whole):
    disk, make_room = small_disk
    process = start(tiny_run.arguments(config, disk / "run"), cache)
    _, err = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in err
    *_, told = err.splitlines()
    assert told.startswith("error: The checkpoint of step ")
    assert " MiB left." in told
    step = newest(disk / "run" / "checkpoints" / "last")
    assert told.endswith(f"give the same command again: it goes on from the checkpoint of step {step}.")
    assert make_room()
    assert f"Resuming from the checkpoint of step {step}" in finished(config, cache, disk / "run")
    assert outcome(disk / "run") == whole


@pytest.mark.slow
def test_a_write_that_fails_half_way_costs_nothing(config, cache, whole, tmp_path):
    process = start(tiny_run.arguments(config, tmp_path / "run"), cache)
    assert wait_for(process, lambda: newest(tmp_path / "run" / "checkpoints" / "last") >= 2)
    # As a quota would: from now on no file may grow beyond this.
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    _, err = process.communicate()
    assert process.returncode == 1
    *_, told = err.splitlines()
    assert told.startswith("error: ")
    assert "give the same command again: it goes on from the checkpoint of step " in told
    finished(config, cache, tmp_path / "run")
    assert outcome(tmp_path / "run") == whole


@pytest.mark.slow
def test_a_folder_that_was_moved_goes_on(config, cache, whole, tmp_path):
    kill_after(4, config, cache, tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    assert "Resuming from the checkpoint of step" in finished(config, cache, tmp_path / "after")
    assert outcome(tmp_path / "after") == whole
    assert not (tmp_path / "before").exists()


@pytest.mark.slow
def test_a_clock_that_was_set_back_changes_nothing(config, cache, whole, tmp_path):
    kill_after(4, config, cache, tmp_path / "run")
    # Python runs this before anything else.
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n"
        "now, now_ns = time.time, time.time_ns\n"
        "time.time = lambda: now() - 4e7\n"
        "time.time_ns = lambda: now_ns() - 40_000_000_000_000_000\n"
    )
    finished(config, cache, tmp_path / "run", PYTHONPATH=str(tmp_path))
    assert outcome(tmp_path / "run") == whole
    # TensorBoard's files are named after the time.
    assert min(int(path.name.split(".")[3]) for path in (tmp_path / "run").glob("events.*")) < time.time() - 3e7


@pytest.mark.slow
def test_the_campaign_counts_what_it_did(tmp_path):
    figures = campaign(tmp_path, kills=2, seed=3)
    assert figures["kills"] == sum(figures["kills_by_moment"].values()) == 2
    assert figures["runs"] >= 1
    assert figures["runs_that_differ"] == 0
