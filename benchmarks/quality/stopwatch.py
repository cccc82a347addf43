"""How long a cell took in all, however often it was stopped, and which code ran it."""

import json
import time
from pathlib import Path
from typing import Any

from bwds.filesystem import write_text


class Stopwatch:
    """Times the processes that worked on a cell, and records which code they ran.

    Args:
        path: file of a list, with null for a time that is running.
        revision: of this process.
        changed: whether files differ from it.
    """

    def __init__(self, path: Path, revision: str, changed: bool) -> None:
        self._path = path
        self._own = {"revision": revision, "modified": changed}

    def _read(self) -> list[dict[str, Any]]:
        return json.loads(self._path.read_text()) if self._path.exists() else []

    def _write(self, processes: list[dict[str, Any]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._path, json.dumps(processes) + "\n")

    def __enter__(self) -> None:
        self._start = time.monotonic()
        self._write([*self._read(), {**self._own, "seconds": None}])

    def __exit__(self, *_: object) -> None:
        self._write([*self._read()[:-1], {**self._own, "seconds": round(time.monotonic() - self._start, 1)}])

    def summary(self) -> dict[str, Any]:
        """The seconds of all processes, None if one was killed before it wrote down its own; their revisions, joined by
        commas; and whether any had changes."""
        processes = self._read()
        known = [process["seconds"] for process in processes if process["seconds"] is not None]
        return {
            "wall_seconds": round(sum(known), 1) if len(known) == len(processes) else None,
            "revision": ", ".join(dict.fromkeys(process["revision"] for process in processes)),
            "modified": any(process["modified"] for process in processes),
        }
