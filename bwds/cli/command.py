"""The command ``bwds``: a table of subcommands, each a module with a ``main`` that is imported when it is called."""

import importlib
import sys
from collections.abc import Sequence

from bwds import __version__
from bwds.checks import require
from bwds.cli import run

COMMANDS = {
    "train": ("bwds.cli.train", "train a language model, or go on with a run"),
    "eval": ("bwds.cli.eval", "perplexity of a trained model on a split"),
    "generate": ("bwds.cli.generate", "let a trained model continue a prompt"),
    "bench": ("bwds.cli.bench", "does skipping blocks pay on this machine, and from which width on?"),
    "usage": ("bwds.cli.usage", "which blocks does a run use, and does the choice follow the input?"),
    "compare": ("bwds.cli.compare", "curves and figures of several runs, and how their options differ"),
    "export": ("bwds.cli.export", "write a model as programs that jax alone can serve"),
}
"""Name, module and what it does. A module has ``main(arguments)``, which raises what ``bwds.cli.run`` answers."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole command; returns its exit code. Without arguments it takes those of the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    first, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if first in ("-h", "--help", "help"):
        return run(lambda _: print(about()), "bwds", [])
    if first == "--version":
        return run(lambda _: print(f"bwds {__version__}"), "bwds", [])
    return run(lambda rest: subcommand(first, rest), f"bwds {first}" if first in COMMANDS else "bwds", rest)


def subcommand(name: str, arguments: Sequence[str]) -> None:
    """Runs one. Raises ``ValueError`` for a name that none has, and what the subcommand raises."""
    require(name in COMMANDS, f"Unknown command {name!r}; the commands are {', '.join(COMMANDS)}.")
    importlib.import_module(COMMANDS[name][0]).main(arguments)


def about() -> str:
    """The help text."""
    lines = ["Block-wise dynamic sparseness for JAX.", "", "    bwds COMMAND [OPTIONS]", ""]
    lines += [f"    bwds {name:<10} {tells}" for name, (_, tells) in COMMANDS.items()]
    return "\n".join(
        [*lines, "", "bwds COMMAND --help lists the options of a command; bwds --version says the version."]
    )
