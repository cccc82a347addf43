"""What all sources of text share. Each source is a module whose ``splits`` are three streams of lines."""

import os
from collections.abc import Iterable
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
    """If all splits come from one text: a sentence on how it is cut."""


def cache_dir() -> Path:
    """Folder for prepared data: ``$XDG_CACHE_HOME/bwds``, or ``~/.cache/bwds``. It may not exist yet.

    Raises:
        ValueError: there is no home directory.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bwds"
    except RuntimeError as error:
        raise ValueError("There is no home directory to keep prepared data in; set XDG_CACHE_HOME.") from error
