"""Lines for whoever looks on. One that cannot be shown is dropped: nothing that is computed ends with its reader."""

import contextlib
import os
import sys
from typing import Any


def tell(text: str) -> bool:
    """Prints on stderr what the user should know; whether it could be shown."""
    return _print(text, sys.stderr)


def say(text: str, *, end: str = "\n") -> bool:
    """Prints a result on stdout; whether it could be shown. Characters that stdout has not are written as escapes."""
    return _print(text, sys.stdout, end)


def _print(text: str, stream: Any, end: str = "\n") -> bool:
    if stream is None:
        return False
    try:
        try:
            print(text, file=stream, end=end, flush=True)
        except UnicodeEncodeError:
            shown = text.encode(stream.encoding, "backslashreplace").decode(stream.encoding)
            print(shown, file=stream, end=end, flush=True)
    except BrokenPipeError:
        drop(stream)
        return False
    # The terminal is gone, the disk behind it is full, or the stream is closed.
    except (OSError, ValueError):
        return False
    return True


def open_streams() -> None:
    """Gives a process that was started without a standard stream the null device in its place.

    Else the next file that it opens takes the number of the stream, and gets what libraries write to that.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # The lowest number that is free.
            setattr(sys, name, os.fdopen(null, "w" if number else "r", closefd=False))


def let_go() -> None:
    """Gives up what is left for a reader that is gone: when it ends, Python would make exit code 120 of it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            drop(stream)


def drop(stream: Any) -> None:
    """What is not written yet, and all that comes, goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
