"""What all sources of text share: each is a module that gives three splits as streams of lines."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SPLITS = ("train", "valid", "test")


class Split(NamedTuple):
    """One split of a corpus."""

    origin: str
    """File or dataset the lines come from, for error messages."""
    lines: Iterable[str]
    """Lines of words separated by white space; read once, from first to last."""
    note: str = ""
    """Where all splits come from one text: a sentence on how it is cut."""


def cache_dir() -> Path:
    """Folder for prepared data: ``$XDG_CACHE_HOME/bwds``, or ``~/.cache/bwds``. It may not exist yet.

    Raises:
        ValueError: there is no home directory.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bwds"
    except RuntimeError as error:
        raise ValueError("There is no home directory to keep prepared data in; set XDG_CACHE_HOME.") from error


def read_lines(path: Path, begin: int = 0, end: int | None = None) -> Iterator[str]:
    """The lines of a UTF-8 text file, one after another; only a newline ends a line.

    Args:
        path: the file.
        begin: the byte to begin at.
        end: the byte to stop before, where the last line is cut; None: at the end of the file.

    Raises:
        ValueError: the file is not UTF-8 (file, line and byte are named).
    """
    with path.open("rb") as file:
        file.seek(begin)
        offset = begin
        for line in file:
            if end is not None:
                line = line[: end - offset]
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                file.seek(0)
                number = file.read(offset).count(b"\n") + 1
                raise ValueError(
                    f"{path} is not UTF-8 text: byte {offset + error.start}, on line {number}, is "
                    f"0x{line[error.start]:02x}. Convert the file to UTF-8."
                ) from error
            offset += len(line)
            if offset == end:
                return
