"""Raw results: one JSON line per case, after a line for the environment."""

import json
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from bwds.timing import Timing


def fields(times: dict[str, Timing], unit: str = "us") -> dict[str, Any]:
    """Median and quartiles of each call as fields of a raw line, in microseconds ("us") or milliseconds ("ms")."""
    scale = {"us": 1e6, "ms": 1e3}[unit]
    medians = {f"{name}_{unit}": t.median * scale for name, t in times.items()}
    return medians | {f"{name}_quartiles_{unit}": [float(f"{q * scale:.5g}") for q in t] for name, t in times.items()}


def case_of(line: dict[str, Any]) -> str:
    """What a line of ``benchmarks.measure.correctness`` is about: its case without the outcome."""
    outcome = ("right", "errors", "allowed", "failed")
    return json.dumps({name: value for name, value in line.items() if name not in outcome}, sort_keys=True)


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
