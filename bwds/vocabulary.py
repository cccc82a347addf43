"""The tokens of a model and their ids."""

import hashlib
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from bwds.array_types import Int32
from bwds.filesystem import read_lines, write_text
from bwds.run_config import Tokens
from bwds.tokens import EOS, UNK, Subwords, Tokenizer, make_tokenizer

__all__ = ["EOS", "UNK", "Vocabulary"]


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a model in the order of their ids: words, characters or subwords.

    Example:
        ```python
        vocabulary = bwds.Vocabulary(("<eos>", "<unk>", "the", "company", "said"))
        ids = vocabulary.prompt("the company said")                             # int32 [0, 2, 3, 4]
        assert vocabulary.text(ids[1:]) == "the company said"
        ```

    Attributes:
        words: the tokens, of any kind, as ``bwds.tokens`` spells them.
        tokens: the kind of the tokens: "word", "character" or "subword".

    Raises:
        ValueError: there are no tokens, or one occurs twice.
    """

    words: tuple[str, ...]
    tokens: Tokens = "word"

    def __post_init__(self) -> None:
        if not self.words:
            raise ValueError("The vocabulary is empty; it needs at least one token.")
        if len(self._ids) < len(self.words):
            place, word = next((i, w) for i, w in enumerate(self.words) if self._ids[w] != i)
            raise ValueError(
                f"The vocabulary has the token {word!r} twice, as ids {place} and {self._ids[word]}; "
                "every token has exactly one id."
            )

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.words)}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return make_tokenizer(self.tokens, self.words)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def eos_id(self) -> int:
        """Id of ``<eos>``. Raises ``ValueError`` where the vocabulary has none."""
        if EOS not in self._ids:
            raise ValueError(f"The vocabulary has no {EOS}, which ends every line.")
        return self._ids[EOS]

    @property
    def sha256(self) -> str:
        """SHA-256 of the tokens in their order."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()

    def encode(self, words: Iterable[str]) -> Int32[np.ndarray, " n"]:
        """Ids of tokens, int32 [n]; a token that is not in the vocabulary gets the id of ``<unk>``.

        Raises:
            ValueError: a token is unknown and the vocabulary has no ``<unk>``.
        """
        unk = self._ids.get(UNK)
        ids = []
        for word in words:
            known = self._ids.get(word, unk)
            if known is None:
                raise ValueError(
                    f"The {self.tokens} {word!r} is not in the vocabulary, which has no {UNK} to stand for it."
                )
            ids.append(known)
        return np.array(ids, np.int32)

    def unknown(self, words: Iterable[str]) -> list[str]:
        """The given tokens that are not in the vocabulary, each once."""
        return [word for word in dict.fromkeys(words) if word not in self._ids]

    def note_of_unknown(self, text: str) -> str | None:
        """A sentence about the tokens of a text that are read as ``<unk>``; None if there are none."""
        unknown = self.unknown(self.split(text))
        return f"The vocabulary has no {', '.join(map(repr, unknown))}; {UNK} is read instead." if unknown else None

    def decode(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """The tokens of ids.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        numbers = [operator.index(i) for i in ids]
        for i in numbers:
            if not 0 <= i < len(self):
                raise ValueError(f"There is no token with the id {i}; ids are from 0 to {len(self) - 1}.")
        return [self.words[i] for i in numbers]

    def split(self, text: str) -> list[str]:
        """The tokens of a text, known or not; a newline is ``<eos>``."""
        return self._tokenizer.split(text)

    def prompt(self, text: str) -> Int32[np.ndarray, " n"]:
        """Ids of a text that begins a line: its tokens after ``<eos>``, if the vocabulary has it; int32 [n].

        Raises:
            ValueError: a token is unknown and the vocabulary has no ``<unk>``.
        """
        return self.encode([*([EOS] if EOS in self._ids else []), *self.split(text)])

    def text(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of ids, with blanks between words; ``<eos>`` ends a line. Errors are those of ``decode``."""
        return self._tokenizer.join(self.decode(ids))

    def shown(self, ids: Iterable[SupportsIndex]) -> list[str]:
        """Each token by itself, as in a picture: its text, a blank in it as ``␣``; ``<eos>`` and ``<unk>`` by name."""
        return [
            word if word in (EOS, UNK) else self._tokenizer.join([word]).replace(" ", "␣") for word in self.decode(ids)
        ]

    def tokenizer_file(self) -> str | None:
        """The tokenizer of subwords in JSON, as the package ``tokenizers`` reads it; None for other tokens."""
        return self._tokenizer.file() if isinstance(self._tokenizer, Subwords) else None

    def save(self, path: str | Path) -> None:
        """Writes one token per line, in the order of the ids. The file is written whole or not at all.

        Raises:
            OSError: the file cannot be written.
        """
        write_text(Path(path), "".join(f"{word}\n" for word in self.words))

    @classmethod
    def load(cls, path: str | Path, tokens: Tokens = "word") -> "Vocabulary":
        """The vocabulary written by ``save``.

        Raises:
            ValueError: no such file; it is empty or not UTF-8; a line is not exactly one token; a token occurs twice.
        """
        if not Path(path).is_file():
            raise ValueError(f"There is no vocabulary at {str(path)!r}; training writes one into its --workdir.")
        words = []
        for number, line in enumerate(read_lines(Path(path)), start=1):
            parts = line.split()
            if len(parts) != 1:
                raise ValueError(f"Line {number} of the vocabulary {path} has {len(parts)} tokens; it must have one.")
            words += parts
        try:
            return cls(tuple(words), tokens)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
