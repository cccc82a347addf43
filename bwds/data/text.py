"""The user's own text files: one each for train, valid and test in a folder, or any text, which is cut in three."""

from collections.abc import Sequence
from pathlib import Path

from bwds.data import cut
from bwds.data.plain import lines
from bwds.data.sources import SPLITS, Split
from bwds.filesystem import place

# Plain names, then those of Mikolov's Penn Treebank archive and of the WikiText archives.
_FILE_NAMES = ("{}.txt", "{}.tokens", "ptb.{}.txt", "wiki.{}.tokens")


def find_files(directory: str | Path, needed: Sequence[str] = SPLITS) -> dict[str, Path]:
    """The file of each split that is needed, by the first name of ``_FILE_NAMES`` that exists.

    Raises:
        ValueError: the folder or the file of a split is missing.
    """
    folder = place(directory, "data.directory")
    if not folder.is_dir():
        raise ValueError(
            f"The data directory {str(folder)!r} does not exist or is no folder; "
            "data.directory names a file of text, or the folder with the files."
        )
    found = {}
    for split in needed:
        names = [name.format(split) for name in _FILE_NAMES]
        present = [folder / name for name in names if (folder / name).is_file()]
        if not present:
            raise ValueError(f"No {split} split in {str(folder)!r}; looked for {', '.join(names)}.")
        found[split] = present[0]
    return found


def splits(directory: str | Path, needed: Sequence[str] = SPLITS, *, held_out: float = 0.05) -> dict[str, Split]:
    """Train, valid and test of a text, or those that are needed, read line by line when asked for.

    A folder with a file of one of the names of ``find_files`` must have all three; any other text is cut in three, see
    ``bwds.data.cut``.

    Args:
        directory: a folder, or one file.
        needed: which splits.
        held_out: if the text is cut, the share for validation, and as much again for test.

    Raises:
        ValueError: as ``find_files``; there is no text; while the lines are read, as ``bwds.data.plain.lines``.
    """
    path = place(directory, "data.directory")
    names = [name.format(split) for split in SPLITS for name in _FILE_NAMES]
    if path.is_file() or (path.is_dir() and not any((path / name).is_file() for name in names)):
        return cut.splits(path, needed, held_out=held_out)
    return {split: Split(str(path), lines(path)) for split, path in find_files(path, needed).items()}
