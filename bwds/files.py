"""Files that are written whole, and errors of the system that say of which file they are."""

import contextlib
import errno
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
    """Writes a file whole or not at all, whatever happens in between, a loss of power included.

    When it returns the file is on the disk, and so is its name where the file system can say so of a folder.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            # Before it takes the name: else the disk may know the new name, and nothing of what is in it.
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            # Of folders not every file system can be asked it.
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(folder)
