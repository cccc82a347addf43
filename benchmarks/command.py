"""The command line of a benchmark: the options that several take, and how a mistake is answered."""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.environment import typed
from bwds import cli
from bwds.filesystem import place

OPTIONS: dict[str, dict[str, Any]] = {
    "cell": {"choices": ["lstm", "qrnn"]},
    "hidden": {"type": int, "help": "width H of every layer; of products [H] -> [4H]"},
    "sparsity": {"type": float, "help": "fraction of blocks omitted"},
    "dtype": {"choices": ["float32", "bfloat16"]},
    "block": {"type": int, "help": "rows and columns of a block"},
    "few_rows": {"type": int, "help": "rows of the products of decoding"},
    "gate_rank": {"type": int, "help": "rank of the gates; full if it is not given"},
    "vocab": {"type": int, "help": "tokens of the vocabulary"},
    "turns": {"type": int, "help": "how often each call is timed"},
    "implementation": {"help": "of the block-sparse product; the best one here if it is not given"},
}
"""The options that several benchmarks share."""


def parser(description: str | None, **defaults: Any) -> ArgumentParser:
    """A parser with ``--output``, and with those of ``OPTIONS`` that are named here.

    Args:
        description: the docstring of the benchmark.
        defaults: {option: its default}; a list where the option takes several values.
    """
    made = ArgumentParser(description=description, formatter_class=RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        known = OPTIONS[name]
        several = {"nargs": "+"} if isinstance(default, list) else {}
        shown = "that of the preset" if default == [None] else " ".join(map(str, (several and default) or [default]))
        words = [known.get("help"), None if default is None else f"default: {shown}"]
        text = "; ".join(filter(None, words))
        made.add_argument(f"--{name.replace('_', '-')}", **known | several | {"default": default, "help": text})
    made.add_argument("--output", type=a_file, metavar="FILE", help="JSONL file that results are appended to")
    return made


def a_folder(text: str) -> Path:
    """The type of an argument that names a folder: see ``bwds.filesystem.place``."""
    try:
        return place(text, "the folder")
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def a_file(text: str) -> str:
    """The type of an argument that names a file."""
    try:
        return str(place(text, "the file", "file"))
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def require_positive(arguments: Namespace, *names: str) -> None:
    """Raises ``ValueError`` unless these arguments of a command, where given, are at least 1."""
    for name in names:
        values = getattr(arguments, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")


def script(main: Callable[[], None]) -> NoReturn:
    """Ends the process as the commands of bwds end: see ``bwds.cli.run``."""
    sys.exit(cli.run(lambda _: main(), typed()[0], sys.argv[1:]))
