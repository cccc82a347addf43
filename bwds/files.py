"""Files that are written whole, and errors of the system that say of which file they are."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """``OSError`` names the file that is written: after it is opened, the system's own message does not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}.") from error


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, whatever happens in between.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
