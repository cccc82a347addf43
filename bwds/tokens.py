"""Tokens of a text: its words, its characters, or pieces of words that are learnt from the text (byte-level BPE).

A token is spelled as one line of ``vocabulary.txt``. These lines define all tokens: no other file is needed to read a
run's text, and two vocabularies are the same if their digests are. ``<eos>`` ends a line, with every kind of token.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from bwds.errors import missing_extra
from bwds.run_config import Tokens

UNK = "<unk>"
EOS = "<eos>"
REPLACEMENT = "\ufffd"
"""It stands for an unknown character, and for bytes that are no character."""


@runtime_checkable
class Tokenizer(Protocol):
    """Text to tokens, as the vocabulary spells them, and back."""

    def split(self, text: str) -> list[str]:
        """The tokens of a text; a newline is ``<eos>``."""
        ...

    def join(self, tokens: Iterable[str]) -> str:
        """The text of tokens."""
        ...


def make_tokenizer(kind: Tokens, words: Sequence[str]) -> Tokenizer:
    """The tokenizer of a vocabulary.

    Args:
        kind: the ``tokens`` of a ``DataConfig``.
        words: of the vocabulary, in the order of their ids; only subwords depend on them.

    Example:
        >>> make_tokenizer("character", ["a", "b", "<eos>"]).split("ab\\n")
        ['a', 'b', '<eos>']
    """
    if kind == "subword":
        return Subwords(words)
    return Characters() if kind == "character" else Words()


def without_line_end(line: str) -> str:
    """A line without its newline, or its CR LF."""
    return line.removesuffix("\n").removesuffix("\r")


def lines_of(tokens: Iterable[str]) -> Iterator[list[str]]:
    """The tokens of each line, without the ``<eos>`` that ends it; those after the last ``<eos>`` are a line too."""
    line: list[str] = []
    for token in tokens:
        if token == EOS:
            yield line
            line = []
        else:
            line.append(token)
    yield line


class Words:
    """Words between white space. ``join`` puts single blanks between them, so the original white space is lost."""

    def split(self, text: str) -> list[str]:
        lines = [line.split() for line in text.split("\n")]
        return [*itertools.chain.from_iterable([*words, EOS] for words in lines[:-1]), *lines[-1]]

    def join(self, tokens: Iterable[str]) -> str:
        return "\n".join(" ".join(line) for line in lines_of(tokens))


class Characters:
    """Unicode code points, of which a character on the screen may have several. ``join(split(text))`` is the text."""

    def split(self, text: str) -> list[str]:
        return [EOS if character == "\n" else spelled(character) for character in text]

    def join(self, tokens: Iterable[str]) -> str:
        special = {EOS: "\n", UNK: REPLACEMENT}
        return "".join(special.get(token) or unspelled(token) for token in tokens)


def spelled(character: str) -> str:
    r"""A character as it stands in a vocabulary: itself, or ``\u20`` where it is a blank, not printable or a ``\``."""
    seen = character.isprintable() and not character.isspace() and character != "\\"
    return character if seen else f"\\u{ord(character):x}"


def unspelled(token: str) -> str:
    """The character that ``spelled`` wrote. Raises ``ValueError`` for anything else."""
    if len(token) == 1:
        return token
    if not re.fullmatch(r"\\u[0-9a-f]{1,6}", token) or int(token[2:], 16) > 0x10FFFF:
        raise ValueError(f"The token {token!r} of the vocabulary is no character; these are the tokens of another run.")
    return chr(int(token[2:], 16))


class Subwords:
    """Byte-level byte pair encoding (Sennrich et al., arXiv 1508.07909; bytes as in GPT-2), by ``tokenizers``.

    Every byte is a token, so no text is unknown, and ``join(split(text))`` is the text. The order of the vocabulary, in
    which its pieces were learnt, defines how a text is cut: of all neighbouring tokens that together are a token, the
    pair whose token comes first in the vocabulary is joined, until there is no such pair.

    Raises:
        ValueError: a byte is missing in the vocabulary.
    """

    def __init__(self, words: Sequence[str]) -> None:
        tokenizers = _library()
        place = {word: i for i, word in enumerate(words)}
        missing = sorted(set(tokenizers.pre_tokenizers.ByteLevel.alphabet()) - place.keys())
        if missing or EOS not in place:
            raise ValueError(
                f"The vocabulary has no {(missing or [EOS])[0]!r}; subwords need {EOS} and every byte: these are the "
                "tokens of another run."
            )
        model: Any = tokenizers.models.BPE(vocab=place, merges=merges(words))
        self._tokenizer = tokenizers.Tokenizer(model)
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyrefly: ignore
        self._tokenizer.decoder = tokenizers.decoders.ByteLevel()  # pyrefly: ignore

    def split(self, text: str) -> list[str]:
        first, *others = (self._tokenizer.encode(line).tokens for line in text.split("\n"))
        return [*first, *itertools.chain.from_iterable([EOS, *tokens] for tokens in others)]

    def join(self, tokens: Iterable[str]) -> str:
        return "\n".join(self._tokenizer.decoder.decode(line) if line else "" for line in lines_of(tokens))

    def file(self) -> str:
        """The tokenizer in JSON, which ``tokenizers`` reads as ``tokenizer.json``; it takes one line at a time."""
        return str(self._tokenizer.to_str())

    def ids(self, lines: Iterable[str]) -> Iterator[Sequence[int]]:
        """The ids of each line, which has no newline."""
        lines = iter(lines)
        while batch := list(itertools.islice(lines, 1000)):
            yield from (encoding.ids for encoding in self._tokenizer.encode_batch_fast(batch))


def merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """All pairs of tokens that together are a later token, in the order of these later tokens.

    Args:
        words: the vocabulary, in the order of its ids.
    """
    place = {word: i for i, word in enumerate(words)}
    return [
        (word[:cut], word[cut:])
        for i, word in enumerate(words)
        for cut in range(1, len(word))
        if max(place.get(word[:cut], i), place.get(word[cut:], i)) < i
    ]


def learn_subwords(lines: Iterable[str], size: int) -> tuple[str, ...]:
    """The vocabulary of subwords that fits a text: ``<eos>``, the bytes, then pieces in the order they are learnt.

    The same text gives the same vocabulary on every machine. It is smaller than ``size`` if no more pieces of the text
    occur twice.

    Args:
        lines: of the training text, without newlines.
        size: tokens of the vocabulary, at least 257, ``<eos>`` and the bytes.
    """
    tokenizers = _library()
    lines = list(lines)
    # Each piece joins two tokens of the text. The library takes memory for as many as it is asked for.
    size = min(size, 257 + sum(len(line.encode()) for line in lines))
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyrefly: ignore
    # One place of the vocabulary is for <eos>. It is no token of this model, so no text can be read as <eos>.
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - 1, min_frequency=2, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    place = tokenizer.get_vocab()
    return (EOS, *sorted(place, key=place.__getitem__))


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ModuleNotFoundError as error:
        raise ValueError(f"The tokens are subwords. {missing_extra(error)}") from error
    return tokenizers
