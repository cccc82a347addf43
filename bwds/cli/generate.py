"""Lets a trained model write: what follows a prompt, token after token.

    bwds generate RUN "some words" [--tokens 50] [--temperature 0.8] [--top-p 0.95] [--seed 0]

The prompt is read in the vocabulary of the run, from the start of a line.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from bwds.checks import require_seed
from bwds.cli import parsed
from bwds.config import Config
from bwds.files import place
from bwds.output import say, tell


@dataclass(frozen=True)
class Options:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, the --workdir of its training."""
    prompt: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[PROMPT]")] = ""
    """What the text begins with; empty: the start of a line."""
    tokens: int = 50
    """How many tokens follow."""
    temperature: float = 0.8
    """Lower is more predictable; 0 always takes the most probable token."""
    top_p: float = 0.95
    """Draws from the most probable tokens that together have this probability."""
    seed: int = 0
    """The same seed gives the same text."""
    checkpoint: Literal["best", "last"] = "best"
    """best: the lowest validation loss; last: the latest state."""


class Sampling(NamedTuple):
    """How many tokens are drawn, and how; see ``bwds.generate.generate``."""

    length: int
    temperature: float
    top_p: float
    seed: int


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``bwds generate``. Raises what ``bwds.cli.run`` answers."""
    options = parsed(lambda: tyro.cli(Options, args=arguments, prog="bwds generate", description=__doc__))
    workdir = place(options.run, "RUN")
    require_seed(options.seed)

    # Imported late, so that --help and mistakes are answered at once.
    from bwds.data import Vocabulary
    from bwds.model import language_model
    from bwds.training.trained import load_checkpoint
    from bwds.training.workdir import VOCABULARY_FILE, read_config

    config = read_config(workdir)
    vocabulary = Vocabulary.load(workdir / VOCABULARY_FILE)
    params, _ = load_checkpoint(config, workdir, options.checkpoint)
    sampling = Sampling(options.tokens, options.temperature, options.top_p, options.seed)
    if not say(continued(options.prompt, config, language_model(config.model), params, vocabulary, sampling)):
        sys.exit(1)


def continued(prompt: str, config: Config, lm: Any, params: Any, vocabulary: Any, sampling: Sampling) -> str:
    """The prompt and what the model writes after it.

    Args:
        prompt: read from the start of a line; stderr names what the vocabulary does not have.
        config: the run's.
        lm: its model.
        params: its parameters, as ``lm.init`` makes them.
        vocabulary: its ``Vocabulary``.
        sampling: how the tokens are drawn.

    Raises:
        ValueError: ``sampling`` is out of range, or a token of the prompt is unknown and there is no ``<unk>``.
    """
    import jax
    import numpy as np

    from bwds.data.tokens import make_tokenizer
    from bwds.generate import generate
    from bwds.model import decode_params

    tokenizer = make_tokenizer(config.data.tokens, vocabulary)
    tokens = tokenizer.split(prompt)
    ids = vocabulary.encode(tokens)
    if unknown := [repr(tokenizer.join([token])) for token in dict.fromkeys(tokens) if token not in vocabulary]:
        tell(f"The vocabulary has no {', '.join(unknown)}; <unk> is read instead.")
    new = generate(
        lm,
        decode_params(params, config.model),
        np.concatenate([[vocabulary.eos_id], ids]),
        key=jax.random.key(sampling.seed),
        length=sampling.length,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
    )
    return tokenizer.join(vocabulary.decode([*ids.tolist(), *new.tolist()]))
