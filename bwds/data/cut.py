"""Cuts a text, a file or all text files of a folder, in three: train, then valid, then test at the end."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from bwds.data.plain import check_is_text, lines
from bwds.data.sources import SPLITS, Split

ENDINGS = (".txt", ".text", ".tokens", ".md", ".markdown", ".rst", ".adoc", ".org", ".tex")
"""A file of a folder is text if its name ends in one of these, in lower case or capitals."""


class Piece(NamedTuple):
    """Bytes ``begin`` to ``end`` of a file."""

    path: Path
    begin: int
    end: int


def splits(path: Path, needed: Sequence[str] = SPLITS, *, held_out: float) -> dict[str, Split]:
    """The splits of a file, or of all text files of a folder and the folders in it, in the order of their names.

    The beginning is for training, the two shares at the end are for validation and test. A border lies at a fraction of
    the bytes, moved on to the next line end. If that is more than half a share away, as on a line of megabytes, it
    moves to the next white space, or else to the next character. The same text is always cut in the same places.

    Args:
        path: a file or a folder. Hidden files and folders are no part of the text, nor are the files of a run in it.
        needed: which splits.
        held_out: a share, more than 0 and less than 0.5.

    Raises:
        ValueError: the folder has no text files, one of them is no text, or a split has no text.
    """
    files = [path] if path.is_file() else text_files(path)
    for file in files:
        check_is_text(file)
    sizes = [file.stat().st_size for file in files]
    total = sum(sizes)
    targets = [round(total * (1.0 - share * held_out)) for share in (2, 1)]
    borders = [0, *(_border(files, sizes, at, reach=int(total * held_out / 2)) for at in targets), total]
    found = {}
    for i, split in enumerate(SPLITS):
        if split not in needed:
            continue
        begin, end = borders[i : i + 2]
        origin = f"the {split} split of {path} (bytes {begin:,} to {end:,})"
        if begin >= end:
            raise ValueError(f"There is no text for {origin}; take more text or a larger data.held_out.")
        found[split] = Split(origin, _lines(_pieces(files, sizes, begin, end)), _note(path, files, borders))
    return found


def text_files(folder: Path) -> list[Path]:
    """The text files of a folder and of the folders in it, in the order of their names within it.

    Raises:
        ValueError: there are none.
    """
    inside = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    files = [
        name
        for name in inside
        if name.suffix.lower() in ENDINGS
        and not any(part.startswith(".") for part in name.parts)
        and not _is_of_a_run(folder, name)
    ]
    if not files:
        raise ValueError(
            f"There is no text in {str(folder)!r}: neither files named train, valid and test, such as train.txt, nor "
            f"any file whose name ends in {', '.join(ENDINGS)}. A single file may have any name: data.directory=FILE."
        )
    return [folder / name for name in sorted(files, key=lambda name: name.parts)]


def _is_of_a_run(folder: Path, name: Path) -> bool:
    """Whether a run in this folder, beside its config.json, wrote the file: a run must not change its own text."""
    written = [part for part in (name, *name.parents) if part.name in ("vocabulary.txt", "checkpoints")]
    return any((folder / part.parent / "config.json").is_file() for part in written)


def _note(path: Path, files: list[Path], borders: list[int]) -> str:
    """A sentence on how the text is cut."""
    whole = f"{path}, one file" if path.is_file() else f"{path}, {len(files)} text file{'s' * (len(files) > 1)} by name"
    shares = [(end - begin) / borders[-1] for begin, end in pairwise(borders)]
    return (
        f"The text is {whole}, {borders[-1]:,} bytes: the first {shares[0]:.1%} are for training, the next "
        f"{shares[1]:.1%} for validation, the last {shares[2]:.1%} for test."
    )


def _border(files: list[Path], sizes: list[int], at: int, *, reach: int) -> int:
    """The byte at which a split ends: ``at``, moved on as ``splits`` describes, by ``reach`` bytes at most."""
    for file, size, end in zip(files, sizes, accumulate(sizes), strict=True):
        if at > end:
            continue
        if at in (0, end):
            return at
        with file.open("rb") as opened:
            # It reads from the byte before, which may end a line.
            opened.seek(at - (end - size) - 1)
            ahead = opened.read(reach + 4)
        if (newline := ahead.find(b"\n", 0, reach)) >= 0:
            return at + newline
        if end - at <= reach:
            return end
        if blank := [i for i, byte in enumerate(ahead[:reach]) if byte in b" \t\r\f\v"]:
            return at + blank[0]
        # The second to fourth byte of a character begin with the bits 10. The file may end with one of them.
        return at + next((i for i, byte in enumerate(ahead[1:]) if byte & 0xC0 != 0x80), len(ahead) - 1)
    return at


def _pieces(files: list[Path], sizes: list[int], begin: int, end: int) -> Iterator[Piece]:
    for file, size, stop in zip(files, sizes, accumulate(sizes), strict=True):
        first, last = max(begin, stop - size), min(end, stop)
        if first < last:
            yield Piece(file, first - (stop - size), last - (stop - size))


def _lines(pieces: Iterator[Piece]) -> Iterator[str]:
    for piece in pieces:
        yield from lines(*piece)
