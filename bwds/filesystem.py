"""Files that are written whole, errors of the system that name their file, names of files and folders, and lines."""

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path


def place(name: str | os.PathLike[str], option: str, what: str = "folder") -> Path:
    """The folder, or file, that a user names; ``~`` is the home folder.

    Raises:
        ValueError: the name is empty; it is an address, such as that of a bucket, and not in a file system; it begins
            with a user that does not exist; a folder on the way to it is a file; or it is to be a file and is a folder.
    """
    text = os.fspath(name)
    if not text:
        raise ValueError(f"{option} is empty; give the name of a {what}.")
    # A Path has lost one of the slashes.
    if "://" in text or re.match(r"[A-Za-z][\w+.-]+:(/|$)", text):
        raise ValueError(
            f"{option} is {text!r}, an address; only {what}s of a file system are read and written. Give one, "
            "and copy it from or to that place, or mount that place as a folder."
        )
    # Not Path.expanduser, which has an error of its own for a user that does not exist.
    expanded = os.path.expanduser(text)
    if user := re.match(r"~(\w[^/]*)", expanded):
        raise ValueError(f"{option} is {text!r}, and there is no user {user[1]!r}; for a name that begins so: ./{text}")
    path = Path(expanded)
    for folder in path.parents:
        # Not Path.is_file, which raises where a folder may not be looked into.
        if os.path.isfile(folder):
            raise ValueError(f"{option} is {text!r}, but {str(folder)!r} is a file and no folder.")
    if what == "file" and os.path.isdir(path):
        raise ValueError(f"{option} is {text!r}, a folder; give the name of a file.")
    return path


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """An ``OSError`` in this context names the file: the system's own message does not, once the file is open."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}.") from error


def temporary_name(path: Path) -> Path:
    """A name beside a file that no other process takes. Of two processes that write one file, the later one wins."""
    return path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all; see ``write_bytes``."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, whatever happens in between, a loss of power included.

    When it returns, the file is on the disk, and so is its name if the file system can sync a folder.

    Raises:
        OSError: it cannot be written; what was there before is as it was.
    """
    temporary = temporary_name(path)
    with writing(path):
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                # Synced before it takes the name: else the disk may know the new name but not the content.
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            # Not every file system can sync a folder.
            if error.errno != errno.EINVAL:
                raise
        finally:
            os.close(folder)


def read_lines(path: Path, begin: int = 0, end: int | None = None) -> Iterator[str]:
    """The lines of a UTF-8 text file, one after another; only a newline ends a line.

    Args:
        path: the file.
        begin: the byte to begin at.
        end: the byte to stop before, where the last line is cut; None: at the end of the file.

    Raises:
        ValueError: the file is not UTF-8 (file, line and byte are named).
    """
    with path.open("rb") as file:
        file.seek(begin)
        offset = begin
        for line in file:
            if end is not None:
                line = line[: end - offset]
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                file.seek(0)
                number = file.read(offset).count(b"\n") + 1
                raise ValueError(
                    f"{path} is not UTF-8 text: byte {offset + error.start}, on line {number}, is "
                    f"0x{line[error.start]:02x}. Convert the file to UTF-8."
                ) from error
            offset += len(line)
            if offset == end:
                return
