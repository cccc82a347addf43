"""The command ``bwds`` and what its parts share: a user's mistake becomes a sentence and an exit code, no traceback.

``python train.py`` and ``python eval.py`` in a clone are the same as ``bwds train`` and ``bwds eval``.
"""

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

from bwds.cli.flags import as_flags
from bwds.errors import is_refusal, missing_extra, no_platform, of_the_system, too_little_memory
from bwds.output import let_go, open_streams, tell

T = TypeVar("T")


def parsed(parse: Callable[[], T]) -> T:
    """Result of a command-line parser.

    Raises:
        ValueError: the parser printed an error and would have ended the process; the message is what it printed,
            without the box around it. Or it raised one.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return parse()
    except ValueError as error:
        raise ValueError(str(error)) from error
    except SystemExit as stop:
        if not stop.code:
            raise
        # Colours are removed, and so is the line that points to --help, which ``run`` prints for all errors.
        text = re.sub(r"\x1b\[[0-9;]*m|\[/?bold\]", "", printed.getvalue())
        # Where the terminal takes ASCII only, the box is drawn in ASCII.
        parts = [" ".join(part.split()) for part in re.split(r"[╭╮╰╯─]{2,}|-{20,}", text.replace("│", " "))]
        _, *sentences = [part for part in parts if part and "full helptext" not in part] or [""]
        raise ValueError(". ".join(sentences).removeprefix("Error parsing ") or " ".join(text.split())) from None


def run(main: Callable[[Sequence[str]], object], program: str, arguments: Sequence[str]) -> int:
    """Calls ``main(arguments)`` and turns what it raises into an exit code.

    Args:
        main: the command.
        program: how it was called: a script, such as ``train.py``, or ``bwds train``.
        arguments: those of the command line.

    Returns:
        0: done.
        1: an error of the system: an ``OSError``, not enough memory, a package of an extra that is not installed, a
            platform that JAX does not have here.
        2: a mistake of the user, a ``ValueError`` that ``is_refusal``, with ``error: ...`` on stderr.
        130: Ctrl-C.
        141: the reader of the output, such as head, has ended; only of commands that do nothing but print.

    Raises:
        Exception: any other error, which is a mistake in this package.
    """
    open_streams()
    try:
        for argument in arguments:
            _check_text(argument)
        try:
            main(arguments)
        except SystemExit:
            _flush()
            raise
        _flush()
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except OSError as error:
        tell(f"error: {of_the_system(error)}")
        return 1
    except Exception as error:
        if is_refusal(error, main):
            program = f"python {program}" if program.endswith(".py") else program
            tell(f"error: {as_flags(str(error))}\nSee {program} --help.")
            return 2
        message = missing_extra(error) or too_little_memory(error) or no_platform(error)
        if message is None:
            raise
        tell(f"error: {message}")
        return 1
    except KeyboardInterrupt:
        tell("Stopped.")
        return 128 + signal.SIGINT
    finally:
        let_go()
    return 0


def _flush() -> None:
    """Writes what is left of the output now, while ``run`` can still answer an error of it."""
    print(end="", flush=True)


def _check_text(argument: str) -> None:
    """Raises ``ValueError`` for bytes of another encoding: they could not be printed, nor written into a file."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise ValueError(f"The argument {argument!r} is not UTF-8 text; rename the file, or write it anew.") from None


def shell_command(command: str, arguments: Sequence[str], *, script: Path | None = None) -> str:
    """The line to type into the shell, in this folder, for a command of ``bwds`` with this Python.

    Args:
        command: its name, such as ``eval``.
        arguments: those of the command.
        script: the script of a clone that does the same; None: the line calls ``bwds``.
    """
    if script is not None:
        script = script.resolve()
        with contextlib.suppress(ValueError):
            script = script.relative_to(Path.cwd())
        return shlex.join([_python(), str(script), *arguments])
    found = shutil.which("bwds")
    # A ``bwds`` beside another Python runs another installation.
    beside = found is not None and Path(found).absolute().parent == Path(sys.executable).absolute().parent
    return shlex.join([*(["bwds"] if beside else [_python(), "-m", "bwds"]), command, *arguments])


def _python() -> str:
    names = (name for name in ("python", "python3") if _same_file(shutil.which(name), sys.executable))
    return next(names, sys.executable)


def _same_file(one: str | None, other: str) -> bool:
    # Links are not resolved: the python of a virtual environment is a link to one outside of it.
    return one is not None and Path(one).absolute() == Path(other).absolute()
