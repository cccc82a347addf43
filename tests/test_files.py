"""Files are written whole, and errors name them."""

import os
from pathlib import Path

import pytest

from bwds import files
from bwds.files import write_text, writing


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match=f"{path} cannot be written: no space"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("Only Linux tells the path of a descriptor.")
    path, calls = tmp_path / "file", []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor):
        # A path, of the file or its folder, and how much there is of it.
        synced = os.readlink(f"/proc/self/fd/{descriptor}")
        calls.append((synced, os.path.getsize(synced) if os.path.isfile(synced) else None))
        fsync(descriptor)

    def rename(*paths):
        calls.append("renamed")
        replace(*paths)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(files.os, "replace", rename)
    write_text(path, "new")
    assert calls == [(f"{path}.tmp", 3), "renamed", (str(tmp_path), None)]


def test_an_error_in_the_middle_of_a_file_names_it():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("Only Linux has a device that is always full.")
    with pytest.raises(OSError, match=r"^/dev/full cannot be written: No space left on device\.$"), writing(full):
        full.write_text("a")
