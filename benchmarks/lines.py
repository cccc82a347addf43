"""Raw results: one JSON line a case, the environment first."""

import json
from pathlib import Path
from typing import Any

from benchmarks.environment import environment


class Results:
    """Prints rows and appends them to a JSONL file, the environment first; no file if ``path`` is None."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self.write("environment", **environment())

    def write(self, benchmark: str, **values: Any) -> None:
        """One case."""
        rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in values.items()}
        print("  ".join(f"{k} {v}" for k, v in rounded.items()), flush=True)
        if self._path is not None:
            with self._path.open("a") as file:
                print(json.dumps({"benchmark": benchmark, **rounded}), file=file)
