"""How much of dense's work each method needs to stay within a percent of dense's perplexity."""

import math
import statistics
from collections import defaultdict
from typing import NamedTuple

from benchmarks.quality.grid import SMALL, tuned
from benchmarks.report.quality_lines import Line, Lines, dense_recurrent, finished, values
from benchmarks.report.tables import MISSING, table
from bwds import PRESETS

REACHES = 1.0
"""Percent above dense at which a model still counts as having reached it."""
FROM_DENSE = ("dense-equal", "magnitude")
"""Methods that are the dense model where they omit nothing."""


class Point(NamedTuple):
    """A variant: its share of dense's work, and its perplexity."""

    share: float
    perplexity: float


def least_share(points: list[Point], limit: float) -> str:
    """The smallest share at which a method's perplexity is at most ``limit``, in words.

    Between two variants the logarithm of the perplexity is taken as linear in the share. "at most" stands before the
    share of the sparsest variant if that is within the limit, "above" before that of the densest if even that is not.

    Args:
        points: the method's variants, in any order.
        limit: a perplexity.
    """
    if not points:
        return MISSING
    within, *sparser = sorted(points, reverse=True)
    if within.perplexity > limit:
        return f"above {within.share:.2f}"
    for point in sparser:
        if point.perplexity > limit:
            low, high = math.log(within.perplexity), math.log(point.perplexity)
            part = (math.log(limit) - low) / (high - low)
            return f"{within.share + part * (point.share - within.share):.2f}"
        within = point
    return f"at most {within.share:.2f}"


def _share(preset: str, line: Line) -> float:
    """What is left of the work of dense's recurrent layers.

    A smaller dense model saves in the softmax too; that counts as if the recurrent layers had saved it.
    """
    return 1 - (line["multiply_adds"]["preset_dense"] - line["multiply_adds"]["total"]) / dense_recurrent(preset)


def frontier(found: dict[str, Lines]) -> list[str]:
    """Lines of the table: a row for each method, and for each preset of a size for CPU cores a column."""
    columns: dict[str, dict[str, str]] = {}
    for preset in SMALL:
        dense = values(found[preset]["dense"], "test_perplexity")
        if not dense:
            continue
        mean, points = statistics.fmean(dense), defaultdict(list)
        for variant in tuned(preset):
            done, method = finished(found[preset][variant]), variant.rpartition("-")[0]
            if done and method:
                perplexity = statistics.fmean(values(done, "test_perplexity"))
                points[method].append(Point(_share(preset, done[0]), perplexity))
        for method in set(FROM_DENSE) & set(points):
            points[method].append(Point(1.0, mean))
        columns[PRESETS[preset].model.cell.upper()] = {
            method: least_share(made, mean * (1 + REACHES / 100)) for method, made in points.items()
        }
    methods = list(dict.fromkeys(method for column in columns.values() for method in column))
    rows = [[method, *(column.get(method, MISSING) for column in columns.values())] for method in methods]
    return table(["method", *columns], rows) if rows else ["Not run yet."]
