"""The plots of docs/results.md: perplexity against cost, and by epoch. Outliers do not set the scale."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.quality.intervals import mean
from benchmarks.report.plots import METHODS, legend, panels

LOWEST, HIGHEST, HIGHEST_IN_CURVES = 0.95, 1.4, 1.8
"""How far the axes may go, against the lowest value."""
SEEDS = 3
"""An interval of fewer seeds is too wide to be drawn."""
EQUAL, APART = 0.01, 0.015
"""Costs that differ by less than the first stand side by side; the second is their distance, a share of the axis."""
MARKERS = {"dense": "D", "0.5": "o", "0.75": "s", "0.9": "^"}
"""By the end of a variant's name, its sparsity."""


def method_of(variant: str) -> str:
    """The name of a variant without its sparsity."""
    return variant.rpartition("-")[0] or variant


def _look(variant: str) -> dict[str, Any]:
    return {"color": METHODS[method_of(variant)], "marker": MARKERS[variant.rpartition("-")[2]]}


def _side_by_side(costs: dict[str, float]) -> dict[str, float]:
    """Where each variant stands: at its cost, or a little beside it if others cost the same."""
    step, places = APART * (max(costs.values()) - min(costs.values())), {}
    for name, cost in costs.items():
        same = [other for other in costs if abs(costs[other] - cost) < EQUAL]
        places[name] = cost + step * (same.index(name) - (len(same) - 1) / 2)
    return places


def _limit(axis: Any, best: dict[str, float], shown: Iterable[float], highest: float) -> None:
    """Limits an axis to what is shown near the lowest value; a legend names the variants that are not seen then."""
    low = min(best.values())
    near = [value for value in shown if LOWEST * low <= value <= highest * low]
    margin = 0.05 * (max(near) - min(near)) or 1
    axis.set_ylim(min(near) - margin, max(near) + margin)
    beyond = {f"{name} ↑ {value:.0f}": _look(name) for name, value in best.items() if value > highest * low}
    if beyond:
        legend(axis, beyond, "best")


def draw(
    path: Path, *, costs: dict[str, float], tests: dict[str, list[float]], curves: dict[str, dict[float, float]]
) -> None:
    """Draws both.

    Args:
        path: of the SVG file.
        costs: of each variant, multiply-adds against the dense model of the preset.
        tests: test perplexity of the same variants, seed by seed.
        curves: validation perplexity of some of them, by epoch.
    """
    with panels(path, 2, same_scales=False) as (left, right):
        means = {name: mean(values) for name, values in tests.items()}
        values = {name: estimate.value for name, estimate in means.items()}
        bars = {name: means[name].half_width if len(tests[name]) >= SEEDS else math.nan for name in tests}
        places, edge = _side_by_side(costs), HIGHEST * min(values.values())
        methods = {method: [name for name in tests if method_of(name) == method] for method in METHODS}
        for method, names in methods.items():
            line = [values[name] if values[name] <= edge else math.nan for name in names]
            left.plot([places[name] for name in names], line, color=METHODS[method], linewidth=1)
        for name, value in values.items():
            look = _look(name) | {"label": name, "markersize": 5, "capsize": 3, "elinewidth": 1}
            left.errorbar(places[name], value, bars[name], **look)
        left.set_title(f"bars: 95% intervals, for {SEEDS} seeds or more, cut at the axis", fontsize="small")
        words = "multiply-adds a token, gate and softmax included, of dense;\nequal ones stand side by side"
        left.set_xlabel(words, fontsize="small")
        left.set_ylabel("test perplexity")
        _limit(left, values, [y for name, v in values.items() for y in (v, v - bars[name], v + bars[name])], HIGHEST)
        found = {name: curve for name, curve in curves.items() if curve}
        for name, curve in found.items():
            right.plot(list(curve), list(curve.values()), **_look(name), label=name, markersize=3, linewidth=1)
        right.set_xlabel("epoch", fontsize="small")
        right.set_ylabel("validation perplexity, mean over seeds")
        if found:
            best = {name: min(curve.values()) for name, curve in found.items()}
            _limit(right, best, [y for curve in found.values() for y in curve.values()], HIGHEST_IN_CURVES)
        entries = {method: {"color": METHODS[method]} for method, names in methods.items() if names}
        ends = {name.rpartition("-")[2] for name in tests}
        for end, marker in MARKERS.items():
            if end in ends:
                label = "no sparsity" if end == "dense" else f"sparsity {end}"
                entries[label] = {"marker": marker, "linestyle": "none"}
        legend(left.figure, entries)
