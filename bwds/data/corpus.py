"""From text to token ids: corpora and their vocabularies. NumPy only."""

from array import array
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bwds.array_types import Int32
from bwds.config import DataConfig
from bwds.data.sources import SPLITS, Split
from bwds.vocabulary import EOS, UNK, Vocabulary

DATASETS = ("pydoc", "ptb", "wikitext2", "wikitext103", "text")


class Corpus(NamedTuple):
    """A corpus as token ids: int32 arrays [n], an ``<eos>`` at the end of every line of the text."""

    name: str
    vocabulary: Vocabulary
    train: Int32[np.ndarray, " n"]
    valid: Int32[np.ndarray, " n"]
    test: Int32[np.ndarray, " n"]


def load_corpus(config: DataConfig) -> Corpus:
    """Reads, or prepares and reads, the corpus that the configuration names.

    Words are split on white space; ``<eos>`` ends every line, blank ones included (so the usual counts come out:
    929,589 training tokens for Penn Treebank, 2,088,628 for WikiText-2). A line whose last word is ``<eos>`` gets no
    second one; elsewhere in a line ``<eos>`` is the same word and is kept. The vocabulary is that of the training
    split, the most frequent words first, equals in alphabetical order.

    ``config.vocab_limit`` is the size of the vocabulary, ``<unk>`` and ``<eos>`` included: with it the corpus always
    has an ``<unk>``, which stands for the rare words.

    Raises:
        ValueError: unknown dataset, missing, empty or unreadable files, failed download, a split without words, fewer
            than two different ones in the training split, or a word of the valid or test split that is not in the
            vocabulary of a corpus without ``<unk>``.
    """
    return build_corpus(config.dataset, _open_splits(config), vocab_limit=config.vocab_limit)


def load_split(config: DataConfig, split: str, vocabulary: Vocabulary) -> tuple[Int32[np.ndarray, " n"], int]:
    """Ids of one split in the vocabulary of a run, and how many of its words that lacks. No other file is needed.

    Raises:
        ValueError: as ``load_corpus``, for that split; or a word that is unknown, and no ``<unk>``.
    """
    source = _open_splits(config, (split,))[split]
    table = _Table({word: i for i, word in enumerate(vocabulary.words)})
    table.origin, table.way_out = source.origin, "The run cannot be evaluated on this text."
    _ = vocabulary.eos_id
    return _encode(source, table), table.unknown


def _open_splits(config: DataConfig, needed: Sequence[str] = SPLITS) -> dict[str, Split]:
    name, directory = config.dataset, config.directory
    if name not in DATASETS and not name.startswith("tfds:"):
        raise ValueError(f"Unknown dataset {name!r}; known are {', '.join(DATASETS)} and tfds:NAME.")
    if directory is not None and (name == "pydoc" or name.startswith("tfds:")):
        raise ValueError(
            f"Dataset {name!r} reads no files of yours, but the directory {directory!r} is given. "
            "For text files of yours use --data.dataset text; else leave --data.directory out."
        )
    if name == "pydoc":
        from bwds.data import pydoc

        return pydoc.splits()
    if name == "text":
        from bwds.data import text

        if directory is None:
            raise ValueError("Dataset 'text' needs --data.directory, the folder with the train, valid and test files.")
        return text.splits(directory, needed)
    if name in DATASETS and directory is not None:
        from bwds.data import known

        return known.splits(name, directory, needed)
    try:
        from bwds.data import tfds
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Dataset {name!r} is downloaded by TensorFlow Datasets, whose module {error.name!r} is not installed: "
            'pip install -e ".[train]" in a clone of the repository, or give text files with --data.directory DIR.'
        ) from error
    return tfds.splits(name.removeprefix("tfds:")) if name.startswith("tfds:") else tfds.own_splits(name)


class _Table(dict[str, int]):
    """Word to id; a word that is not there gets the id of ``<unk>``, or is an error that names the split's origin."""

    origin, unknown = "", 0
    way_out = f"Put {UNK} for rare words into the training text, or set --data.vocab-limit, which makes {UNK} of them."

    def __missing__(self, word: str) -> int:
        if UNK not in self:
            raise ValueError(
                f"The word {word!r} of {self.origin} does not occur in the training split, and the corpus has no {UNK} "
                f"to stand for it. {self.way_out}"
            )
        self.unknown += 1
        return self[UNK]


def build_corpus(name: str, splits: dict[str, Split], *, vocab_limit: int | None = None) -> Corpus:
    """Corpus from three streams of lines; each is read once. See ``load_corpus`` for the rules and errors."""
    ids_in_order_of_appearance: defaultdict[str, int] = defaultdict()
    ids_in_order_of_appearance.default_factory = ids_in_order_of_appearance.__len__
    train = _encode(splits["train"], ids_in_order_of_appearance)
    words = np.array(list(ids_in_order_of_appearance), dtype=object)
    if len(real := sorted(ids_in_order_of_appearance.keys() - {UNK, EOS})) < 2:
        known = f"only the word {real[0]!r}" if real else f"no word but {UNK}"
        raise ValueError(f"{splits['train'].origin} has {known}; there is something to learn from two words on.")
    counts = np.bincount(train, minlength=len(words))
    table = _Table(_frequency_order(words, counts, vocab_limit))
    # Old id -> new id, so that the training text need not be looked up word by word again.
    renumber = np.array([table[word] for word in words], np.int32)
    held_out = []
    for split in SPLITS[1:]:
        table.origin = splits[split].origin
        held_out.append(_encode(splits[split], table))
    valid, test = held_out
    return Corpus(name, Vocabulary(tuple(table)), renumber[train], valid, test)


def _frequency_order(words: np.ndarray, counts: np.ndarray, limit: int | None) -> dict[str, int]:
    count = {word: int(n) for word, n in zip(words, counts, strict=True)}
    if limit is not None:
        count.setdefault(UNK, 0)
        rare = sorted(count.keys() - {UNK, EOS}, key=lambda word: (-count[word], word))[limit - 2 :]
        count[UNK] += sum(count.pop(word) for word in rare)
    return {word: i for i, word in enumerate(sorted(count, key=lambda word: (-count[word], word)))}


def _encode(split: Split, table: dict[str, int]) -> Int32[np.ndarray, " n"]:
    """Ids of a split's words, ``<eos>`` at the end of every line. Raises ``ValueError`` where there are no words."""
    # An array of C ints: a list of Python ints would take ten times the memory on the larger corpora.
    ids, eos = array("i"), table[EOS]
    for line in split.lines:
        words = len(ids)
        ids.extend(map(table.__getitem__, line.split()))
        if len(ids) == words or ids[-1] != eos:
            ids.append(eos)
    if not ids:
        raise ValueError(f"{split.origin} is empty; every split needs text.")
    encoded = np.frombuffer(ids, np.int32)
    if not (encoded != eos).any():
        raise ValueError(f"{split.origin} has no words, only {len(ids)} blank lines; every split needs text.")
    return encoded
