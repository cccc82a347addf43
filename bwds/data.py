"""From text to batches: vocabulary, corpus, and windows of token ids for training and evaluation. NumPy only."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, SupportsIndex

import numpy as np

from bwds.array_types import Float32, Int32
from bwds.config import DataConfig
from bwds.datasets import SPLITS, Split, read_lines
from bwds.files import write_text

UNK = "<unk>"
EOS = "<eos>"
DATASETS = ("pydoc", "ptb", "wikitext2", "wikitext103", "text")


@dataclass(frozen=True)
class Vocabulary:
    """The words of a model; a word's place is its id."""

    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.words:
            raise ValueError("The vocabulary is empty; it needs at least one word.")
        if len(self._ids) < len(self.words):
            place, word = next((i, w) for i, w in enumerate(self.words) if self._ids[w] != i)
            raise ValueError(
                f"The vocabulary has the word {word!r} twice, as ids {place} and {self._ids[word]}; "
                "every word has exactly one id."
            )

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    @property
    def eos_id(self) -> int:
        """Id of ``<eos>``. Raises ``ValueError`` where the vocabulary has none."""
        if EOS not in self._ids:
            raise ValueError(f"The vocabulary has no {EOS}, which ends every line.")
        return self._ids[EOS]

    def encode(self, words: Iterable[str]) -> Int32[np.ndarray, " n"]:
        """Ids of the words; a word that is not in the vocabulary gets the id of ``<unk>``.

        Raises:
            ValueError: an unknown word, and the vocabulary has no ``<unk>``.
        """
        unk = self._ids.get(UNK)
        ids = []
        for word in words:
            known = self._ids.get(word, unk)
            if known is None:
                raise ValueError(f"The word {word!r} is not in the vocabulary, which has no {UNK} to stand for it.")
            ids.append(known)
        return np.array(ids, np.int32)

    def decode(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """Words of the ids."""
        return [self.words[i] for i in ids]

    def save(self, path: str | Path) -> None:
        """Writes one word a line: line number, counted from 0, = id. The file is written whole or not at all."""
        write_text(Path(path), "".join(f"{word}\n" for word in self.words))

    @classmethod
    def load(cls, path: str | Path) -> "Vocabulary":
        """The vocabulary written by ``save``.

        Raises:
            ValueError: no such file; it is empty or not UTF-8; a line is not exactly one word; a word occurs twice.
        """
        if not Path(path).is_file():
            raise ValueError(f"There is no vocabulary at {str(path)!r}; training writes one into its --workdir.")
        words = []
        # The first word may begin with what is a byte order mark elsewhere.
        for number, line in enumerate(read_lines(Path(path), skip_mark=False), start=1):
            parts = line.split()
            if len(parts) != 1:
                raise ValueError(f"Line {number} of the vocabulary {path} has {len(parts)} words; it must have one.")
            words += parts
        try:
            return cls(tuple(words))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


class Corpus(NamedTuple):
    """A corpus as token ids: int32 arrays [n], one ``<eos>`` at the end of every line of the text."""

    name: str
    vocabulary: Vocabulary
    train: Int32[np.ndarray, " n"]
    valid: Int32[np.ndarray, " n"]
    test: Int32[np.ndarray, " n"]


def load_corpus(config: DataConfig) -> Corpus:
    """Reads, or prepares and reads, the corpus that the configuration names.

    Words are split on white space; ``<eos>`` ends every line, blank ones included (so the usual counts come out:
    929,589 training tokens for Penn Treebank, 2,088,628 for WikiText-2). The vocabulary is that of the training
    split, the most frequent words first, equals in alphabetical order.

    ``config.vocab_limit`` is the size of the vocabulary, ``<unk>`` and ``<eos>`` included: with it the corpus always
    has an ``<unk>``, which stands for the rare words.

    Raises:
        ValueError: unknown dataset, missing, empty or unreadable files, failed download, or a word of the valid or test
            split that is not in the vocabulary of a corpus without ``<unk>``.
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
        from bwds.datasets import pydoc

        return pydoc.splits()
    if name == "text":
        from bwds.datasets import text

        if directory is None:
            raise ValueError("Dataset 'text' needs --data.directory, the folder with the train, valid and test files.")
        return text.splits(directory, needed)
    from bwds.datasets import tfds

    if name.startswith("tfds:"):
        return tfds.splits(name.removeprefix("tfds:"))
    return tfds.own_splits(name, directory, needed)


class _Table(dict[str, int]):
    """Word to id; a word that is not there gets the id of ``<unk>``, or is an error that names the split's origin."""

    origin, unknown = "", 0
    way_out = f"Put {UNK} for rare words into the training text, or set --data.vocab-limit, which makes them {UNK}."

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
    """Ids of a split's words, ``<eos>`` after every line. Raises ``ValueError`` where there are none."""
    # An array of C ints: a list of Python ints would take ten times the memory on the larger corpora.
    ids = array("i")
    for line in split.lines:
        ids.extend(map(table.__getitem__, line.split()))
        ids.append(table[EOS])
    if not ids:
        raise ValueError(f"{split.origin} is empty; every split needs text.")
    return np.frombuffer(ids, np.int32)


class Batch(NamedTuple):
    """One training step's tokens."""

    inputs: Int32[np.ndarray, "B T"]
    targets: Int32[np.ndarray, "B T"]
    """Each the token after the input in the same place."""
    new_epoch: bool
    """First window of an epoch: the carried state must be zeros."""


def steps_per_epoch(ids: Int32[np.ndarray, " n"], *, batch_size: int, sequence_length: int) -> int:
    """Whole windows in one pass over the corpus.

    Raises:
        ValueError: the corpus is shorter than one batch.
    """
    steps = (len(ids) - 1) // batch_size // sequence_length
    if steps < 1:
        raise ValueError(
            f"The training split has {len(ids)} tokens, fewer than one batch of {batch_size} x {sequence_length} and "
            "one more; choose a smaller --data.batch-size or --data.sequence-length, or more text."
        )
    return steps


def train_batch(
    ids: Int32[np.ndarray, " n"], step: int, *, batch_size: int, sequence_length: int, rows: slice = slice(None)
) -> Batch:
    """The batch of a step, counted from 0 over all epochs: a function of the step alone, so that runs can resume.

    The text is cut into ``batch_size`` contiguous columns of equal length; a step reads the next
    ``sequence_length`` tokens of each. Tokens that fill no whole window at the end of a column are left out.

    Args:
        ids: the corpus.
        step: which batch.
        batch_size: columns, B.
        sequence_length: tokens of each, T.
        rows: which of the B rows to return.

    Raises:
        ValueError: the corpus is shorter than one batch.
    """
    epoch_steps = steps_per_epoch(ids, batch_size=batch_size, sequence_length=sequence_length)
    step %= epoch_steps
    column_length = (len(ids) - 1) // batch_size
    starts = np.arange(batch_size)[rows] * column_length + step * sequence_length
    window = ids[starts[:, None] + np.arange(sequence_length + 1)[None, :]]
    return Batch(window[:, :-1], window[:, 1:], step == 0)


class EvalBatch(NamedTuple):
    """One evaluation step's tokens."""

    inputs: Int32[np.ndarray, "B T"]
    targets: Int32[np.ndarray, "B T"]
    weights: Float32[np.ndarray, "B T"]
    """1 where the target counts, else 0."""


def eval_batches(
    ids: Int32[np.ndarray, " n"], *, batch_size: int, sequence_length: int, eos_id: int
) -> Iterator[EvalBatch]:
    """Windows in which each of the n tokens is a target of weight 1 exactly once, whatever the batch.

    The input of the first token is ``<eos>``, that of every other the token before it. The text is cut into at most
    ``batch_size`` contiguous columns, read side by side. The first starts at the first token, from a state of zeros,
    and is one window longer than the others. Every other starts one window early, with weight 0 there, so that its
    state has run on over the boundary when its own tokens come. All windows have the same shape, [B, T]; B is less
    than ``batch_size`` where columns would stay empty. Padding, at the end of the last column, has weight 0.

    Raises:
        ValueError: there are no tokens.
    """
    n, window = len(ids), sequence_length
    if n == 0:
        raise ValueError("There are no tokens to evaluate on.")
    # The fewest windows w of the other columns with (w + 1) T + (B - 1) w T >= n; then the fewest columns.
    column_windows = max(0, -(-(n - window) // (batch_size * window)))
    columns = -(-(n - window) // (column_windows * window)) if column_windows else 1
    starts = np.arange(columns) * column_windows * window
    ends = np.minimum(starts + (column_windows + 1) * window, n)
    text = np.concatenate([[eos_id], ids]).astype(np.int32)  # text[i] is the input of target text[i + 1]
    for step in range(column_windows + 1):
        places = (starts + step * window)[:, None] + np.arange(window)[None, :]
        inside = places < ends[:, None]
        warm_up = (step == 0) & (np.arange(columns) > 0)
        weights = inside & ~warm_up[:, None]
        inputs = np.where(inside, text[np.minimum(places, n)], eos_id)
        targets = np.where(inside, text[np.minimum(places + 1, n)], eos_id)
        yield EvalBatch(inputs.astype(np.int32), targets.astype(np.int32), weights.astype(np.float32))
