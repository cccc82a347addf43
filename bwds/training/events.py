"""Scalars and pictures for TensorBoard, written by the thread that calls.

tensorboardX's ``SummaryWriter`` hands them to a thread of its own. If the disk is full, that thread ends, and the next
call waits for ever.
"""

import socket
import time
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyrefly: ignore[missing-module-attribute]
from tensorboardX.proto.summary_pb2 import Summary  # pyrefly: ignore[missing-module-attribute]
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from bwds.filesystem import writing

FLUSH_EVERY_S = 10.0


class Events:
    """A file of events in a folder. All methods raise ``OSError`` where it cannot be written.

    Args:
        folder: an existing folder; the name of the file tells time and host.
        purge_step: TensorBoard drops what older files have of this step and later ones; None: it drops nothing.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        # The path is absolute, because tensorboardX takes a name that begins with "s3:" or "gs:" for a bucket.
        self._path = folder.absolute() / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._file = RecordWriter(str(self._path))
        self._flush_at = 0.0
        self._write(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, name: str, value: float, step: int) -> None:
        """Writes one number. The first write ten seconds or more after the last flush brings all to the disk."""
        self._write(Event(step=step, summary=scalar(name, value)))

    def write_image(self, name: str, png: bytes, size: tuple[int, int], step: int) -> None:
        """Writes one picture, a PNG file of ``size`` (width, height); it reaches the disk as a number does."""
        image = Summary.Image(width=size[0], height=size[1], colorspace=4, encoded_image_string=png)
        self._write(Event(step=step, summary=Summary(value=[Summary.Value(tag=name, image=image)])))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with writing(self._path):
            self._file.write(event.SerializeToString())
            if time.monotonic() >= self._flush_at:
                self._file.flush()
                self._flush_at = time.monotonic() + FLUSH_EVERY_S

    def close(self) -> None:
        """Writes out what is left."""
        with writing(self._path):
            self._file.close()
