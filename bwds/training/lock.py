"""One run at a time in a folder."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from bwds.filesystem import writing
from bwds.output import tell

LOCK_FILE = "lock"


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Makes the folder if it does not exist, and keeps other runs out of it while the context lasts.

    The lock is the operating system's, on a file in the folder, so it ends with the process, even after a crash. If the
    file system has no locks, a warning on stderr says so.

    Raises:
        ValueError: a run is going on there, or it is no folder.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{str(workdir)!r} is a file; workdir must be a folder, or a name for a new one.")
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(
                f"A run is going on in {str(workdir)!r} ({holder}); wait until it ends, stop it, or give another "
                "workdir."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            tell(
                f"warning: {workdir} is in a file system without locks ({error.strerror}); see to it that no other run "
                "uses it."
            )
        with writing(workdir / LOCK_FILE):
            file.truncate(0)
            # Written past the file's buffer: on a full disk, a file with data in its buffer could not be closed.
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
            # Synced because the other processes of the run read it, from other machines.
            os.fsync(file.fileno())
        yield
