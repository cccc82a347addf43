"""Lines for the user. A line that cannot be shown is dropped, so that a run does not end because nobody reads it."""

import contextlib
import os
import sys
from typing import Any


def tell(text: str) -> bool:
    """Prints a message on stderr; returns whether it could be shown."""
    return _print(text, sys.stderr)


def say(text: str, *, end: str = "\n") -> bool:
    """Prints a result on stdout, unknown characters as escapes; returns whether it could be shown."""
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

    Otherwise the next file that it opens takes the number of the stream, and gets what libraries write to the stream.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)  # The lowest number that is free.
            setattr(sys, name, os.fdopen(null, "w" if number else "r", closefd=False))


def let_go() -> None:
    """Drops output whose reader is gone; otherwise Python would fail to flush it and end with exit code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            drop(stream)


def drop(stream: Any) -> None:
    """Sends what the stream has not written yet, and all that follows, to the null device."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
