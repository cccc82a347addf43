"""Files are written whole, and errors name them."""

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


def test_an_error_in_the_middle_of_a_file_names_it():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("Only Linux has a device that is always full.")
    with pytest.raises(OSError, match=r"^/dev/full cannot be written: No space left on device\.$"), writing(full):
        full.write_text("a")
