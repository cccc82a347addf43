"""The raw lines of benchmarks/reproduce.py as the page of perplexities takes them."""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from benchmarks.quality.cell_lines import read_line
from benchmarks.quality.grid import SIZES, cells
from bwds import PRESETS, cost

Line = dict[str, Any]
Lines = dict[str, list[Line]]
"""Raw lines of each variant of one preset, by seed."""


def read_lines(results_dir: Path) -> dict[str, Lines]:
    """Lines of all cells that there are, by preset and variant; a variant without any has an empty list."""
    found: dict[str, Lines] = {preset: {} for preset in SIZES}
    for cell in cells():
        line = read_line(cell, results_dir / "quality")
        found[cell.preset].setdefault(cell.variant, []).extend([] if line is None else [line])
    return found


def finished(lines: list[Line]) -> list[Line]:
    """The lines whose training did not fail."""
    return [line for line in lines if "failed" not in line]


def values(lines: list[Line], key: str) -> list[float]:
    """One value of every finished line."""
    return [line[key] for line in finished(lines)]


def curve(preset: str, lines: list[Line]) -> dict[float, float]:
    """Validation perplexity by epoch: the mean over the finished lines, wherever all have a value."""
    curves = [dict(line["validation_curve"]) for line in finished(lines)]
    steps = sorted(set.intersection(*map(set, curves))) if curves else []
    return {step / PRESETS[preset].train.eval_every: statistics.fmean(c[step] for c in curves) for step in steps}


def relative(line: Line) -> float:
    """Multiply-adds of a token over those of the dense model of the preset's size."""
    return line["multiply_adds"]["total"] / line["multiply_adds"]["preset_dense"]


def dense_recurrent(preset: str) -> int:
    """Multiply-adds of the recurrent layers of the dense model of the preset's size."""
    return cost(dataclasses.replace(PRESETS[preset].model, method="dense")).blocks


def recurrent_share(preset: str, line: Line) -> float:
    """Multiply-adds of the recurrent layers, gates included, over those of the dense model of the preset's size."""
    return (line["multiply_adds"]["gates"] + line["multiply_adds"]["blocks"]) / dense_recurrent(preset)
