"""A model that was trained, ready to be used."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from bwds.array_types import Int, Real, Whole
from bwds.checks import require, require_seed
from bwds.config import ModelConfig
from bwds.generate import generate, stream
from bwds.model import LanguageModel, language_model
from bwds.tokens import REPLACEMENT
from bwds.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained model, as ``bwds.load`` and ``bwds.load_model`` return it.

    Example:
        ```python
        loaded = bwds.load("model.safetensors")
        print(loaded.card)
        print(loaded.generate("the company said", length=20))
        logits, carry, info = loaded.model.apply(loaded.params, tokens, loaded.model.init_carry(4))
        ```

    Attributes:
        config: the model's.
        params: laid out by ``bwds.decode_params``, or as in the file with ``load_model(..., for_decoding=False)``.
        vocabulary: its tokens and their ids; None: the file has none.
        card: a description of the model for people, in Markdown.
        parameters_sha256: digest of the parameters as they are in the file or checkpoint.
    """

    config: ModelConfig
    params: dict[str, Any] = field(repr=False)
    vocabulary: Vocabulary | None = field(repr=False)
    card: str = field(repr=False)
    parameters_sha256: str

    @property
    def model(self) -> LanguageModel:
        """The pure functions ``init``, ``apply`` and ``init_carry``."""
        return language_model(self.config)

    def generate(
        self,
        prompt: str | Sequence[str] = "",
        *,
        length: Whole = 50,
        temperature: Real = 0.8,
        top_p: Real = 0.95,
        seed: int = 0,
        ban: Sequence[str] = (),
        sparsity: float | None = None,
    ) -> Any:
        """A text that begins with the prompt; lines end where the model ends them.

        Example:
            ```python
            loaded.generate("the company said", length=20, ban=["<unk>"])
            loaded.generate(["the company said", "in"], temperature=0)       # a list of two texts
            ```

        Args:
            prompt: the beginning of a line, or several such prompts of any lengths; blanks separate words.
            length: number of tokens to add, at least 1.
            temperature: at least 0; lower is more predictable, and 0 always takes the most probable token.
            top_p: in (0, 1]; draws from the most probable tokens that together have this probability.
            seed: from 0 to 2**32 - 1; the same seed gives the same text.
            ban: tokens that are never written.
            sparsity: share of the blocks left out, in [0, 1), instead of the model's own; dynamic models only.

        Returns:
            The text, or a list of texts for several prompts.

        Raises:
            ValueError: an argument is out of range, a banned token is unknown, or there is no vocabulary.

        Warns:
            UserWarning: a word of the prompt is unknown, so ``<unk>`` is read instead.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        vocabulary, given, options = self._prepared(prompts, temperature, top_p, seed, ban)
        model = language_model(self.config.at_sparsity(sparsity))
        # A single prompt draws with the key itself, several with keys made from it.
        several = not isinstance(prompt, str)
        new = generate(model, self.params, given if several else given[0], length=length, **options)
        rows = zip(given, np.asarray(new if several else [new]), strict=True)
        texts = [vocabulary.text(continued(vocabulary, ids, more)) for ids, more in rows]
        return texts if several else texts[0]

    def stream(
        self,
        prompt: str = "",
        *,
        length: Whole | None = None,
        temperature: Real = 0.8,
        top_p: Real = 0.95,
        seed: int = 0,
        ban: Sequence[str] = (),
        sparsity: float | None = None,
    ) -> Iterator[str]:
        """The tokens that ``generate`` adds to the prompt, each as soon as it is known; ``<eos>`` where a line ends.

        A model of characters or subwords yields pieces of its text, blanks and line ends included.

        Example:
            ```python
            for word in loaded.stream("the company said", length=20):
                print(word, end=" ", flush=True)
            ```

        Args:
            prompt: the beginning of a line.
            length: number of tokens, at least 1; None: there is no end.
            temperature: as in ``generate``.
            top_p: as in ``generate``.
            seed: as in ``generate``.
            ban: as in ``generate``.
            sparsity: as in ``generate``.

        Returns:
            An iterator of strings.

        Raises:
            ValueError: an argument is out of range, a banned token is unknown, or there is no vocabulary.

        Warns:
            UserWarning: a word of the prompt is unknown, so ``<unk>`` is read instead.
        """
        vocabulary, (given,), options = self._prepared([prompt], temperature, top_p, seed, ban)
        model = language_model(self.config.at_sparsity(sparsity))
        tokens = stream(model, self.params, given, length=length, **options)
        if vocabulary.tokens == "word":
            return (vocabulary.words[token] for token in tokens)
        return _pieces(vocabulary, tokens)

    def _prepared(
        self, prompts: Sequence[str], temperature: Real, top_p: Real, seed: int, ban: Sequence[str]
    ) -> tuple[Vocabulary, list[np.ndarray], dict[str, Any]]:
        """The vocabulary, the ids of the prompts, and the options of ``bwds.generate``; warns of unknown words."""
        vocabulary = self.vocabulary
        if vocabulary is None:
            raise ValueError(
                "The model has no vocabulary, so it reads and writes no text; give ids to bwds.generate.generate."
            )
        require_seed(seed)
        given = [vocabulary.prompt(prompt) for prompt in prompts]
        banned = banned_ids(vocabulary, ban)
        if note := vocabulary.note_of_unknown("\n".join(prompts)):
            warnings.warn(note, stacklevel=3)
        options = {"key": jax.random.key(seed), "temperature": temperature, "top_p": top_p, "ban": banned}
        return vocabulary, given, options


def _pieces(vocabulary: Vocabulary, tokens: Iterable[Any]) -> Iterator[str]:
    """The text of tokens, piece by piece as soon as it is final: a character may take several subwords."""
    waiting: list[int] = []
    shown, text = 0, ""
    for token in tokens:
        waiting.append(int(token))
        text = vocabulary.text(waiting)
        # Bytes at the end may be the beginning of a character. No later token changes the text before them.
        settled = text.rstrip(REPLACEMENT)
        if piece := settled[shown:]:
            yield piece
        shown = len(settled)
        if settled == text:
            waiting, shown = [], 0
    if waiting:
        yield text[shown:]


def continued(
    vocabulary: Vocabulary, prompt: Int[np.ndarray, " P"], new: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " m"]:
    """The ids of a prompt and of the text that follows it, without the ``<eos>`` before its line."""
    return np.concatenate([prompt[len(vocabulary.prompt("")) :], new])


def banned_ids(vocabulary: Vocabulary, words: Sequence[str]) -> list[int]:
    """Ids of tokens that are not to be written.

    Raises:
        ValueError: the vocabulary does not have one of them.
    """
    require(not isinstance(words, str), f"ban is {words!r}, one string; give a list of words.")
    unknown = vocabulary.unknown(words)
    require(not unknown, f"The vocabulary has no {', '.join(map(repr, unknown))} to ban.")
    return vocabulary.encode(words).tolist()
