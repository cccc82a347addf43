"""Files are written whole, and errors name them."""

import os
from pathlib import Path

import pytest

from bwds import filesystem
from bwds.filesystem import place, write_text, writing


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_text(path, "old")
    monkeypatch.setattr(filesystem.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match=f"{path} cannot be written: no space"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_that_write_the_same_file_do_not_mix(tmp_path, monkeypatch):
    """The file is whole, and that of the one that ends last; its permissions are those of any new file."""
    path, fsync = tmp_path / "file", os.fsync
    (tmp_path / "any").touch()

    def other_first(descriptor):
        monkeypatch.setattr(filesystem.os, "fsync", fsync)
        write_text(path, "of the other, longer")
        fsync(descriptor)

    monkeypatch.setattr(filesystem.os, "fsync", other_first)
    write_text(path, "mine")
    assert path.read_text() == "mine"
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode
    assert sorted(tmp_path.iterdir()) == [tmp_path / "any", path]


@pytest.mark.parametrize(
    "name",
    ["gs://bucket/run", Path("gs://bucket/run"), "gcs:/bucket", Path("s3://"), "a/hdfs://b", "file:///tmp/x", ""],
)
def test_an_address_is_no_folder(name):
    with pytest.raises(ValueError, match=r"--workdir is ('.*', an address|empty)"):
        place(name, "--workdir")


def test_a_name_below_a_file_and_a_folder_for_a_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"--workdir is '.*/file/a/b', but '.*/file' is a file and no folder"):
        place(tmp_path / "file" / "a" / "b", "--workdir")
    with pytest.raises(ValueError, match=r"--export is '.*', a folder; give the name of a file"):
        place(tmp_path, "--export", "file")
    assert place(tmp_path / "file", "--export", "file") == tmp_path / "file"
    assert place(tmp_path / "new" / "folder", "--workdir") == tmp_path / "new" / "folder"


def test_the_home_folder_is_meant_by_its_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    names = ("~/run", Path("~/run"), "~", "./~nobody-of-that-name/run", "run/a:b/~", "a:b/c")
    found = [str(place(name, "--workdir")) for name in names]
    assert found == ["/home/me/run", "/home/me/run", "/home/me", "~nobody-of-that-name/run", "run/a:b/~", "a:b/c"]
    with pytest.raises(ValueError, match=r"there is no user 'nobody-of-that-name'.*: \./~nobody-of-that-name/run"):
        place("~nobody-of-that-name/run", "--workdir")


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

    monkeypatch.setattr(filesystem.os, "fsync", sync)
    monkeypatch.setattr(filesystem.os, "replace", rename)
    write_text(path, "new")
    (temporary, size), *others = calls
    assert Path(temporary).parent == tmp_path
    assert size == 3
    assert others == ["renamed", (str(tmp_path), None)]


def test_an_error_in_the_middle_of_a_file_names_it():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("Only Linux has a device that is always full.")
    with pytest.raises(OSError, match=r"^/dev/full cannot be written: No space left on device\.$"), writing(full):
        full.write_text("a")
