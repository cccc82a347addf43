"""Which files a checkpoint consists of, and the digest of each. Other files of its folder are ignored."""

import hashlib
import itertools
import os
from fnmatch import fnmatch
from pathlib import Path

MANIFEST_FILE = "sha256.txt"
# Files that desktops and file servers put into any folder, and remove, at any moment.
_FOREIGN = (".DS_Store", "._*", ".nfs*", ".fuse_hidden*", "desktop.ini", "Thumbs.db")


def manifest(directory: Path) -> str:
    """A line for every file, as ``sha256sum`` writes them; the last line has the digest of those before it."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in _digests(directory, _FOREIGN))
    return f"{lines}# {hashlib.sha256(lines.encode()).hexdigest()}\n"


def unchanged(directory: Path) -> bool:
    """Whether all files that the manifest names are what they were when it was made.

    Raises:
        OSError: one of them cannot be read.
    """
    text = (directory / MANIFEST_FILE).read_text(encoding="utf-8", errors="replace")
    if "\n" not in text:
        # Earlier versions kept one digest of all files that were there.
        return any(text == _digest_of_all(directory, foreign) for foreign in ((), _FOREIGN))
    lines, _, own = text.rpartition("# ")
    if own != f"{hashlib.sha256(lines.encode()).hexdigest()}\n":
        return False
    named = (line.split("  ", 1) for line in lines.splitlines())
    return all((directory / name).is_file() and _sha256(directory / name) == digest for digest, name in named)


def set_aside(path: Path, reason: str) -> Path:
    """Renames a path that is not to be used to a free name, ``12.REASON``, which it returns. Nothing is removed."""
    names = (path.with_name(f"{path.name}.{reason}{number}") for number in itertools.chain([""], itertools.count(2)))
    free = next(name for name in names if not os.path.lexists(name))
    path.rename(free)
    return free


def _digests(directory: Path, foreign: tuple[str, ...]) -> list[tuple[str, str]]:
    """Name and digest of all files but the manifest and those with a foreign name."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST_FILE)
    known = [path for path in files if not any(fnmatch(path.name, pattern) for pattern in foreign)]
    return [(path.relative_to(directory).as_posix(), _sha256(path)) for path in known]


def _digest_of_all(directory: Path, foreign: tuple[str, ...]) -> str:
    lines = "".join(f"{name} {digest}\n" for name, digest in _digests(directory, foreign))
    return hashlib.sha256(lines.encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
