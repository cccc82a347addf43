"""Plain text files: UTF-8, with a byte order mark or without; files that are there by mistake are refused."""

import re
from collections.abc import Iterator
from pathlib import Path

from bwds.filesystem import read_lines

_MARK = "\ufeff"
# Files that are there when a download or a copy went wrong: how such a file begins, what it is, what to do.
_NO_TEXT = (
    (rb"version https://git-lfs\.github\.com/spec/", "a pointer of Git LFS", "Run git lfs pull in its repository."),
    (rb"(\.\./)*(\.git)?/annex/objects/", "a pointer of git-annex", "Run git annex get in its repository."),
    (rb"outs:\s*- (md5|etag|checksum):", "a pointer of DVC", "Run dvc pull in its repository."),
    (rb"\x1f\x8b|BZh[1-9]1AY&SY|\xfd7zXZ\x00|\x28\xb5\x2f\xfd", "compressed", "Decompress it."),
    (rb"PK\x03\x04|7z\xbc\xaf\x27\x1c", "an archive", "Unpack it."),
    (rb"%PDF-|\{\\rtf1|\x89PNG|\xff\xd8\xff|GIF8|\x7fELF|MZ\x90", "no text", "Give its text as a plain text file."),
    (rb"\xff\xfe|\xfe\xff|\x00\x00\xfe\xff", "UTF-16 or UTF-32", "Convert the file to UTF-8."),
    (
        rb"(?i)\s*((<\?xml[^>]*>\s*)?<(!doctype html|html|error)\b|\{\s*\"(error|message)\"|"
        rb"(404: |entry )?not found\s*\Z)",
        "the page of a server and no text",
        "Most likely its download failed; download it again.",
    ),
)


def check_is_text(path: Path) -> None:
    """Raises ``ValueError`` if a file begins like one that is there by mistake, such as a pointer or an archive."""
    with path.open("rb") as file:
        start = file.read(512).removeprefix(_MARK.encode())
    for pattern, what, way_out in _NO_TEXT:
        if re.match(pattern, start):
            raise ValueError(f"{path} is {what}: it begins with {start[:24]!r}. {way_out}")


def lines(path: Path, begin: int = 0, end: int | None = None) -> Iterator[str]:
    """The lines of a plain text file between two of its bytes.

    A byte order mark at the start of a line is dropped; there is one on later lines if files were joined.

    Raises:
        ValueError: as ``check_is_text`` and ``read_lines``; a mark elsewhere in a line, or a NUL character.
    """
    check_is_text(path)
    piece = f" after byte {begin}" if begin else ""
    for number, raw in enumerate(read_lines(path, begin, end), start=1):
        line = raw.lstrip(_MARK)
        if _MARK in line:
            raise ValueError(
                f"{path} has a byte order mark (U+FEFF) in the middle of line {number}{piece}, as where files are "
                "joined without a line end. Put a line end or a blank in its place."
            )
        if "\0" in line:
            raise ValueError(
                f"{path} has a NUL character on line {number}{piece}: it is UTF-16, or no text, or was damaged. "
                "Convert it to UTF-8, or write it anew."
            )
        yield line
