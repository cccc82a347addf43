"""Where the line of a cell is, and what it says."""

import json
from pathlib import Path
from typing import Any

from benchmarks.quality.grid import Cell


def result_path(cell: Cell, results: Path) -> Path:
    """File of a cell's line."""
    return results / f"{cell.name}.json"


def read_line(cell: Cell, results: Path) -> dict[str, Any] | None:
    """A cell's line, None if there is none.

    Raises:
        ValueError: the line is that of a run with other options: the name has changed its meaning since.
    """
    path = result_path(cell, results)
    if not path.exists():
        return None
    line = json.loads(path.read_text())
    if line["options"] != cell.options:
        raise ValueError(
            f"{path} is of a run with the options {line['options']}; the grid now has {cell.options} under this name. "
            "Remove the file, or give the cell another name."
        )
    return line
