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
    """What ``bwds.load`` gives.

    Example:
        ```python
        loaded = bwds.load("model.safetensors")
        print(loaded.card)
        print(loaded.generate("the company said", length=20))
        logits, carry, info = loaded.model.apply(loaded.params, tokens, loaded.model.init_carry(4))
        ```

    Attributes:
        config: of the model.
        params: laid out for decoding by ``bwds.decode_params``, unless it was loaded otherwise.
        vocabulary: its tokens and their ids; None: the file has none.
        card: what it is, for people.
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
        """A text that begins with the prompt; a line ends where the model ends it.

        Example:
            ```python
            loaded.generate("the company said", length=20, ban=["<unk>"])
            loaded.generate(["the company said", "in"], temperature=0)       # a list of two texts
            ```

        Args:
            prompt: the beginning of a line, or several such prompts, of any lengths; words have blanks between them.
            length: how many tokens to add.
            temperature: lower is more predictable; 0 always takes the most probable token.
            top_p: draws from the most probable tokens that together have this probability.
            seed: the same seed gives the same text.
            ban: tokens that are never written.
            sparsity: share of the blocks left out instead of the model's own; dynamic models only.

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
        # A prompt alone draws with the key itself.
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
        """The words of ``generate`` after the prompt, each as soon as it is known; ``<eos>`` where a line ends.

        A model of characters or subwords gives pieces of its text, with blanks and line ends as they are.

        Example:
            ```python
            for word in loaded.stream("the company said", length=20):
                print(word, end=" ", flush=True)
            ```

        The other arguments are those of ``generate``, with one prompt.

        Args:
            length: how many; None: there is no end.
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
        """The vocabulary, the prompts' ids, and what both ways to generate take; warns of unknown words."""
        vocabulary = self.vocabulary
        if vocabulary is None:
            raise ValueError(
                "The model has no vocabulary, so it reads and writes no text; give ids to bwds.generate.generate."
            )
        require_seed(seed)
        given = [vocabulary.prompt(prompt) for prompt in prompts]
        banned = banned_ids(vocabulary, ban)
        unknown = vocabulary.unknown(token for prompt in prompts for token in vocabulary.split(prompt))
        if unknown:
            names = ", ".join(map(repr, unknown))
            warnings.warn(f"The vocabulary has no {names}; <unk> is read instead.", stacklevel=3)
        options = {"key": jax.random.key(seed), "temperature": temperature, "top_p": top_p, "ban": banned}
        return vocabulary, given, options


def _pieces(vocabulary: Vocabulary, tokens: Iterable[Any]) -> Iterator[str]:
    """The text of tokens, as soon as it is settled: a character may take several subwords."""
    waiting: list[int] = []
    shown, text = 0, ""
    for token in tokens:
        waiting.append(int(token))
        text = vocabulary.text(waiting)
        # Bytes at the end may be the beginning of a character; what comes before them no token changes any more.
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
    """The ids of a prompt and of what follows it, without the ``<eos>`` before its line."""
    return np.concatenate([prompt[len(vocabulary.prompt("")) :], new])


def banned_ids(vocabulary: Vocabulary, words: Sequence[str]) -> list[int]:
    """Ids of words that are not to be written.

    Raises:
        ValueError: the vocabulary has no such word, so that there is nothing to ban.
    """
    require(not isinstance(words, str), f"ban is {words!r}, one string; give a list of words.")
    unknown = vocabulary.unknown(words)
    require(not unknown, f"The vocabulary has no {', '.join(map(repr, unknown))} to ban.")
    return vocabulary.encode(words).tolist()
