"""The raw lines of times: every file is a list of runs, each an environment line and the lines of its cases."""

import json
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]
KINDS = ("decode", "batched", "train_step", "model_decode", "token_profile")
"""Values of "benchmark" in the raw lines that the page of times shows; a file may hold others."""


class Run(NamedTuple):
    """One run of one command."""

    name: str
    environment: Row
    rows: list[Row]

    @property
    def hardware(self) -> str:
        """What it ran on, in words."""
        found = self.environment
        count = found["cores"] if found["platform"] == "cpu" else found["devices"]
        unit = "core" if found["platform"] == "cpu" else "device"
        words = f"{found['processor'] if unit == 'core' else found['device']}, {count} {unit}{'s' * (count > 1)}"
        if unit == "core" and found["devices"] > 1:
            words += f", columns sharded over {found['devices']} CPU devices"
        return words

    def of(self, kind: str) -> list[Row]:
        """Its cases of one kind."""
        return [row for row in self.rows if row["benchmark"] == kind]


def read_runs(results_dir: Path) -> list[Run]:
    """All runs that have times, by the name of their file and in its order."""
    runs: list[Run] = []
    for path in sorted(results_dir.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row.get("benchmark") == "environment":
                runs.append(Run(path.name, row, []))
            elif runs and runs[-1].name == path.name and "benchmark" in row:
                runs[-1].rows.append(row)
    return [run for run in runs if any(run.of(kind) for kind in KINDS)]
