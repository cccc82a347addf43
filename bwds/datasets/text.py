"""A folder with one text file for each of train, valid and test."""

from collections.abc import Sequence
from pathlib import Path

from bwds.datasets import SPLITS, Split, read_lines
from bwds.files import place

# Plain names, the names in Mikolov's Penn Treebank archive, and those in the WikiText archives.
_FILE_NAMES = ("{}.txt", "{}.tokens", "ptb.{}.txt", "wiki.{}.tokens")


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


def splits(directory: str | Path, needed: Sequence[str] = SPLITS) -> dict[str, Split]:
    """Train, valid and test of the folder, or those that are needed, read line by line when asked for.

    Raises:
        ValueError: as ``find_files``; while reading, as ``read_lines``.
    """
    return {split: Split(str(path), read_lines(path)) for split, path in find_files(directory, needed).items()}
