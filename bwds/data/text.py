"""A folder with one text file for each of train, valid and test."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from bwds.data.sources import SPLITS, Split
from bwds.filesystem import place, read_lines

# Plain names, the names in Mikolov's Penn Treebank archive, and those in the WikiText archives.
_FILE_NAMES = ("{}.txt", "{}.tokens", "ptb.{}.txt", "wiki.{}.tokens")
_MARK = "\ufeff"
# What a file turns out to be when a download or a copy went wrong: how it begins, what that is, what to do.
_NO_TEXT = (
    (rb"version https://git-lfs\.github\.com/spec/", "a pointer of Git LFS", "Run git lfs pull in its repository."),
    (rb"(\.\./)*(\.git)?/annex/objects/", "a pointer of git-annex", "Run git annex get in its repository."),
    (rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ\x00|\x28\xb5\x2f\xfd", "compressed", "Decompress it."),
    (rb"PK\x03\x04|7z\xbc\xaf\x27\x1c", "an archive", "Unpack it."),
    (rb"\xff\xfe|\xfe\xff|\x00\x00\xfe\xff", "UTF-16 or UTF-32", "Convert the file to UTF-8."),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*((<\?xml[^>]*>\s*)?<(!doctype html|html|error)\b|(404: |entry )?not found\s*\Z)",
        "the page of a server and no text",
        "Most likely its download failed; download it again.",
    ),
)


def find_files(directory: str | Path, needed: Sequence[str] = SPLITS) -> dict[str, Path]:
    """The file of each split that is needed; of several candidates the first in the order of ``_FILE_NAMES`` is taken.

    Raises:
        ValueError: the folder or the file of a split is missing.
    """
    folder = place(directory, "--data.directory")
    if not folder.is_dir():
        raise ValueError(
            f"The data directory {str(folder)!r} does not exist or is no folder; "
            "--data.directory names the folder with the train, valid and test files."
        )
    found = {}
    for split in needed:
        names = [name.format(split) for name in _FILE_NAMES]
        present = [folder / name for name in names if (folder / name).is_file()]
        if not present:
            raise ValueError(f"No {split} split in {str(folder)!r}; looked for {', '.join(names)}.")
        found[split] = present[0]
    return found


def check_is_text(path: Path) -> None:
    """Raises ``ValueError`` where a file begins as one of those that stand in for a text by mistake."""
    with path.open("rb") as file:
        start = file.read(512)
    for pattern, what, way_out in _NO_TEXT:
        if re.match(pattern, start):
            raise ValueError(f"{path} is {what}: it begins with {start[:24]!r}. {way_out}")


def splits(directory: str | Path, needed: Sequence[str] = SPLITS) -> dict[str, Split]:
    """Train, valid and test of the folder, or those that are needed, read line by line when asked for.

    A byte order mark at the start of a line, where files were joined too, is no part of its first word.

    Raises:
        ValueError: as ``find_files``; while reading, as ``read_lines``, or what a file holds is no plain text.
    """
    return {split: Split(str(path), _lines(path)) for split, path in find_files(directory, needed).items()}


def _lines(path: Path) -> Iterator[str]:
    check_is_text(path)
    for number, raw in enumerate(read_lines(path), start=1):
        line = raw.lstrip(_MARK)
        if _MARK in line:
            raise ValueError(
                f"{path} has a byte order mark (U+FEFF) in the middle of line {number}, as where files are joined "
                "without a line end. Put a line end or a blank in its place."
            )
        if "\0" in line:
            raise ValueError(
                f"{path} has a NUL character on line {number}: it is UTF-16, or no text, or was damaged. "
                "Convert it to UTF-8, or write it anew."
            )
        yield line
