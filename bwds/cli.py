"""What the entry scripts share: mistakes of the user become one sentence and an exit code, never a traceback."""

import contextlib
import io
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def parsed(parse: Callable[[], T]) -> T:
    """Result of a command-line parser.

    Raises:
        ValueError: the parser printed an error and would have ended the process; the message is what it printed,
            without the box around it.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return parse()
    except SystemExit as stop:
        if not stop.code:
            raise
        # Without colours, and without the line that points to --help, which ``run`` prints for all.
        text = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())
        parts = [" ".join(part.split()) for part in re.split(r"[╭╮╰╯─]{2,}", text.replace("│", " "))]
        sentences = [part for part in parts[2:] if part and "full helptext" not in part]
        raise ValueError(". ".join(sentences).removeprefix("Error parsing ") or text.strip()) from None


def run(main: Callable[[Sequence[str]], None], script: str, arguments: Sequence[str]) -> int:
    """Calls ``main(arguments)`` and turns what it raises into an exit code.

    Returns:
        0; 2 with ``error: ...`` on stderr for a mistake of the user (``ValueError``); 1 for an error of the system
        (``OSError``); 130 after Ctrl-C.
    """
    try:
        main(arguments)
    except ValueError as error:
        print(f"error: {error}\nSee python {script} --help.", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def shell_command(script: Path, arguments: Sequence[str]) -> str:
    """A command for the shell that runs a script with this Python, from this folder."""
    python = next(
        (name for name in ("python", "python3") if _same_file(shutil.which(name), sys.executable)), sys.executable
    )
    script = script.resolve()
    with contextlib.suppress(ValueError):
        script = script.relative_to(Path.cwd())
    return shlex.join([python, str(script), *arguments])


def _same_file(one: str | None, other: str) -> bool:
    # Not resolved: the python of a virtual environment is a link, and the link is what matters.
    return one is not None and Path(one).absolute() == Path(other).absolute()
