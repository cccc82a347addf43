"""From text to token ids: a corpus's vocabulary, and its splits as ids. Only subwords need ``tokenizers``."""

import reprlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from bwds.array_types import Int32
from bwds.config import DataConfig
from bwds.data.sources import SPLITS, Split
from bwds.run_config import Tokens
from bwds.tokens import Subwords, learn_subwords, spelled, unspelled, without_line_end
from bwds.vocabulary import EOS, UNK, Vocabulary

DATASETS = ("pydoc", "ptb", "wikitext2", "wikitext103", "text")
MOST = 10_000
"""Largest vocabulary if its limit is chosen here, ``<unk>`` and ``<eos>`` included: the size of Penn Treebank's."""
SUBWORDS = 4096
"""Size of a vocabulary of subwords without a limit."""


class Corpus(NamedTuple):
    """A corpus as token ids, with an ``<eos>`` at the end of every line of the text.

    Attributes:
        name: of the dataset.
        vocabulary: the token of each id.
        train: ids of the text to train on, int32 [n].
        valid: ids of the validation text, int32 [n].
        test: ids of the test text, int32 [n].
        notes: sentences for the user about what was chosen.
    """

    name: str
    vocabulary: Vocabulary
    train: Int32[np.ndarray, " n"]
    valid: Int32[np.ndarray, " n"]
    test: Int32[np.ndarray, " n"]
    notes: tuple[str, ...] = ()


def load_corpus(config: DataConfig) -> Corpus:
    """Reads, or prepares and reads, the corpus that the configuration names.

    Example:
        ```python
        from bwds.data import load_corpus

        corpus = load_corpus(bwds.DataConfig(dataset="text", directory="texts"))
        print(f"{len(corpus.train):,} tokens for training, of {len(corpus.vocabulary):,} different ones")
        ```

    Tokens are words split on white space, characters, or subwords; ``<eos>`` ends every line, blank ones included.
    Words give the usual counts: 929,589 training tokens for Penn Treebank, 2,088,628 for WikiText-2. A line whose last
    word is ``<eos>`` gets no second one; elsewhere in a line ``<eos>`` is kept, as the same word. For characters and
    subwords, ``<eos>`` in a text is five characters, and the line end CR LF is a newline.

    The vocabulary is that of the training split: words or characters by frequency, equal ones in alphabetical order;
    subwords in the order in which they are learnt. ``config.vocab_limit`` is its size, ``<unk>`` and ``<eos>``
    included; ``<unk>`` then stands for rarer words or characters. Without a limit, and without an ``<unk>`` in the
    text, a limit is chosen if one is needed: if a token of the valid or test split is not in the training split, or if
    there are more than ``MOST`` tokens. Then ``<unk>`` stands for what occurs once in the training split, and the most
    frequent others fill the ``MOST``, ``<unk>`` and ``<eos>`` included. Subwords, ``SUBWORDS`` of them without a limit,
    know every text.

    Args:
        config: names the dataset, its folder, the kind of the tokens and the limit of the vocabulary.

    Returns:
        The corpus: its vocabulary, and the ids of the three splits, int32 [n].

    Raises:
        ValueError: unknown dataset, missing, empty or unreadable files, failed download, a split without words, or
            fewer than two different tokens in the training split.
    """
    return build_corpus(config.dataset, _open_splits(config), tokens=config.tokens, vocab_limit=config.vocab_limit)


def load_split(config: DataConfig, split: str, vocabulary: Vocabulary) -> tuple[Int32[np.ndarray, " n"], int]:
    """Ids of one split in the vocabulary of a run, and the number of tokens that the vocabulary lacks.

    It reads the file of this split alone.

    Raises:
        ValueError: as ``load_corpus``, for that split; or a token is unknown and the vocabulary has no ``<unk>``.
    """
    source = _open_splits(config, (split,))[split]
    _ = vocabulary.eos_id
    if config.tokens == "subword":
        return _subword_ids(source, Subwords(vocabulary.words), vocabulary.eos_id), 0
    special = {EOS, UNK} if config.tokens == "character" else vocabulary.words
    table = _Table({word if word in special else unspelled(word): i for i, word in enumerate(vocabulary.words)})
    table.origin = source.origin
    return _encode(source, table, _SPLIT[config.tokens]), table.unknown


def _open_splits(config: DataConfig, needed: Sequence[str] = SPLITS) -> dict[str, Split]:
    name, directory = config.dataset, config.directory
    if name not in DATASETS and not name.startswith("tfds:"):
        raise ValueError(f"Unknown dataset {name!r}; known are {', '.join(DATASETS)} and tfds:NAME.")
    if directory is not None and (name == "pydoc" or name.startswith("tfds:")):
        raise ValueError(
            f"Dataset {name!r} reads no files of yours, but the directory {directory!r} is given. "
            "For text files of yours use data.dataset='text'; else leave data.directory out."
        )
    if name == "pydoc":
        from bwds.data import pydoc

        return pydoc.splits()
    if name == "text":
        from bwds.data import text

        if directory is None:
            raise ValueError("Dataset 'text' needs data.directory, a file of text or a folder with such files.")
        return text.splits(directory, needed, held_out=config.held_out)
    if name in DATASETS and directory is not None:
        from bwds.data import known

        return known.splits(name, directory, needed)
    try:
        from bwds.data import tfds
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Dataset {name!r} is downloaded by TensorFlow Datasets, whose module {error.name!r} is not installed: "
            'pip install -e ".[train]" in a clone of the repository, or give text files with data.directory=DIR.'
        ) from error
    return tfds.splits(name.removeprefix("tfds:")) if name.startswith("tfds:") else tfds.own_splits(name)


class _Table(dict[str, int]):
    """Token to id. An unknown token gets the id of ``<unk>``; without one it raises an error that names the origin."""

    origin, unknown = "", 0

    def __missing__(self, token: str) -> int:
        if UNK not in self:
            raise ValueError(
                f"The token {reprlib.repr(token)} of {self.origin} does not occur in the training split of the run, "
                f"whose text has no {UNK} to stand for it. The run cannot be evaluated on this text."
            )
        self.unknown += 1
        return self[UNK]


MANY = 0.2
"""Share of unknown tokens in a held-out text above which training says so."""
_SPLIT: dict[str, Callable[[str], Iterable[str]]] = {"word": str.split, "character": without_line_end}
"""The tokens of a line, without the ``<eos>`` that ends it."""


def build_corpus(
    name: str, splits: dict[str, Split], *, tokens: Tokens = "word", vocab_limit: int | None = None
) -> Corpus:
    """Corpus from three streams of lines; each is read once. See ``load_corpus`` for the rules and errors."""
    notes = tuple(note for note in [splits["train"].note] if note)
    if tokens == "subword":
        return _subword_corpus(name, splits, vocab_limit or SUBWORDS, notes)
    order: defaultdict[str, int] = defaultdict()
    order.default_factory = order.__len__
    train = _encode(splits["train"], order, _SPLIT[tokens])
    known = list(order)
    if len(real := sorted(set(known) - {UNK, EOS})) < 2:
        found = f"only the {tokens} {reprlib.repr(real[0])}" if real else f"no {tokens} but {UNK}"
        raise ValueError(f"{splits['train'].origin} has {found}; there is something to learn from two {tokens}s on.")
    # The table grows by tokens of the held-out splits, so that no text has to be looked up twice.
    valid, test = (_encode(splits[split], order, _SPLIT[tokens]) for split in SPLITS[1:])
    count = dict(zip(known, np.bincount(train, minlength=len(known)).tolist(), strict=True))
    if vocab_limit is None and (vocab_limit := _needed_limit(count, unknown=len(order) > len(known))):
        rare = sorted((n for word, n in count.items() if word != EOS), reverse=True)[vocab_limit - 2 :]
        kept = f"The vocabulary is the {vocab_limit - 2:,} most frequent of {len(real):,} {tokens}s; the others, "
        kept += f"{sum(rare) / len(train):.1%} of the training text, are"
        if not rare:
            kept = f"The vocabulary is all {len(real):,} {tokens}s of the training text; any other is"
        notes += (
            f"{kept} {UNK}: data.vocab_limit sets another limit, and with data.tokens='subword' nothing is unknown.",
        )
    words = _frequency_order(count, vocab_limit)
    ids = {word: i for i, word in enumerate(words)}
    renumber = np.array([ids.get(word, ids.get(UNK, -1)) for word in order], np.int32)
    replaced = np.array([word not in ids for word in order])
    for split, text in zip(SPLITS[1:], (valid, test), strict=True):
        if (share := replaced[text].mean()) > MANY:
            notes += (
                f"{share:.0%} of the {split} text is {tokens}s that the vocabulary does not have, all of them {UNK}: "
                "its perplexity says little. Is it of the same kind as the training text?",
            )
    if tokens == "character":
        words = [word if word in (EOS, UNK) else spelled(word) for word in words]
    return Corpus(name, Vocabulary(tuple(words), tokens), renumber[train], renumber[valid], renumber[test], notes)


def _needed_limit(count: dict[str, int], *, unknown: bool) -> int | None:
    """The limit for a text without ``<unk>`` that needs one, for itself or for the held-out splits; None: no need."""
    if UNK in count or not (unknown or len(count) > MOST):
        return None
    often = sum(n > 1 for word, n in count.items() if word != EOS)
    return min(MOST, (often if often > 1 else len(count) - 1) + 2)


def _frequency_order(count: dict[str, int], limit: int | None) -> list[str]:
    count = dict(count)
    if limit is not None:
        count.setdefault(UNK, 0)
        rare = sorted(count.keys() - {UNK, EOS}, key=lambda word: (-count[word], word))[limit - 2 :]
        count[UNK] += sum(count.pop(word) for word in rare)
    return sorted(count, key=lambda word: (-count[word], word))


def _encode(split: Split, table: dict[str, int], tokens_of: Callable[[str], Iterable[str]]) -> Int32[np.ndarray, " n"]:
    """Ids of a split's tokens, ``<eos>`` at the end of every line. Raises ``ValueError`` where there are no tokens."""
    # An array of C ints: a list of Python ints would take ten times the memory on the larger corpora.
    ids, eos = array("i"), table[EOS]
    for line in split.lines:
        before = len(ids)
        ids.extend(map(table.__getitem__, tokens_of(line)))
        if len(ids) == before or ids[-1] != eos:
            ids.append(eos)
    return _whole(split, ids, eos)


def _whole(split: Split, ids: array, eos: int) -> Int32[np.ndarray, " n"]:
    if not ids:
        raise ValueError(f"{split.origin} is empty; every split needs text.")
    encoded = np.frombuffer(ids, np.int32)
    if not (encoded != eos).any():
        raise ValueError(f"{split.origin} has no tokens, only {len(ids)} blank lines; every split needs text.")
    return encoded


def _subword_corpus(name: str, splits: dict[str, Split], size: int, notes: tuple[str, ...]) -> Corpus:
    lines = [without_line_end(line) for line in splits["train"].lines]
    vocabulary = Vocabulary(learn_subwords(lines, size), "subword")
    tokenizer, eos = Subwords(vocabulary.words), vocabulary.eos_id
    train = _subword_ids(splits["train"]._replace(lines=lines), tokenizer, eos)
    valid, test = (_subword_ids(splits[split], tokenizer, eos) for split in SPLITS[1:])
    return Corpus(name, vocabulary, train, valid, test, notes)


def _subword_ids(split: Split, tokenizer: Subwords, eos: int) -> Int32[np.ndarray, " n"]:
    ids = array("i")
    for line in tokenizer.ids(map(without_line_end, split.lines)):
        ids.extend(line)
        ids.append(eos)
    return _whole(split, ids, eos)
