"""Lets a trained model write: what follows a prompt, token after token.

    bwds generate RUN "some words" [--tokens 50] [--temperature 0.8] [--top-p 0.95] [--seed 0]
    bwds generate RUN "some words" "others" ...

RUN is the folder of a run, of which the parameters with the lowest validation loss are taken, or a model in one file,
as bwds eval --export writes it. A prompt begins a line. On a terminal the text of one prompt appears token by token;
several prompts are continued together, and a blank line separates their texts.
"""

import itertools
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from bwds.checks import require_seed
from bwds.cli import parsed
from bwds.filesystem import place
from bwds.output import say, tell
from bwds.tokens import EOS


@dataclass(frozen=True)
class Options:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of a run, the --workdir of its training, or the file of a model."""
    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PROMPT ...]")] = ()
    """The beginning of the text; none: the start of a line."""
    tokens: int = 50
    """How many tokens follow."""
    temperature: float = 0.8
    """Lower is more predictable; 0 always takes the most probable token."""
    top_p: float = 0.95
    """Draws from the most probable tokens that together have this probability."""
    seed: int = 0
    """The same seed gives the same text."""
    ban: tuple[str, ...] = ()
    """Tokens that are never written, such as "<unk>"."""
    sparsity: float | None = None
    """Share of the blocks that a dynamic model leaves out, in [0, 1); None: as in training."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``bwds generate``. Raises what ``bwds.cli.run`` answers."""
    options = parsed(lambda: tyro.cli(Options, args=arguments, prog="bwds generate", description=__doc__))
    path = place(options.run, "RUN")
    require_seed(options.seed)

    # Imported late, so that --help and mistakes are answered at once.
    from bwds.files import load

    loaded = load(path)
    how: dict[str, Any] = {
        "length": options.tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "ban": options.ban,
        "sparsity": options.sparsity,
    }
    prompts = options.prompt or ("",)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", UserWarning)
        if len(prompts) > 1:
            pieces = iter(["\n\n".join(loaded.generate(prompts, **how))])
        elif sys.stdout is not None and sys.stdout.isatty():
            pieces = _as_they_come(loaded, prompts[0], loaded.stream(prompts[0], **how))
        else:
            pieces = iter([loaded.generate(prompts[0], **how)])
    for warning in told:
        tell(str(warning.message))
    if not all(say(piece, end="") for piece in pieces) or not say(""):
        sys.exit(1)


def _as_they_come(loaded: Any, prompt: str, new: Iterator[str]) -> Iterator[str]:
    """The text of ``loaded.generate`` in pieces: the prompt, and what ``loaded.stream`` gives."""
    vocabulary = loaded.vocabulary
    given = vocabulary.encode(vocabulary.split(prompt))
    if vocabulary.tokens != "word":
        yield vocabulary.text(given)
        yield from new
        return
    before = ""
    for word in itertools.chain(vocabulary.decode(given), new):
        yield "\n" if word == EOS else before + word
        before = "" if word == EOS else " "
