"""The plots of docs/results.md: perplexity against cost and time, and by epoch. Outliers do not set the scale."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.quality.intervals import Estimate, mean
from benchmarks.report.plots import METHODS, legend, panels

LOWEST, HIGHEST, HIGHEST_IN_CURVES = 0.95, 1.4, 1.8
"""How far the axes may go, against the lowest value."""
SEEDS = 3
"""How many it takes for an interval to be drawn."""
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


def _against(axis: Any, costs: dict[str, float], means: dict[str, Estimate]) -> None:
    """Draws perplexity against what a token costs; a line joins the sparsities of a method."""
    values = {name: means[name].value for name in costs}
    bars = {name: means[name].half_width or math.nan for name in costs}
    places, edge = _side_by_side(costs), HIGHEST * min(values.values())
    for method, color in METHODS.items():
        names = [name for name in costs if method_of(name) == method]
        line = [values[name] if values[name] <= edge else math.nan for name in names]
        axis.plot([places[name] for name in names], line, color=color, linewidth=1)
    for name, value in values.items():
        look = _look(name) | {"label": name, "markersize": 5, "capsize": 3, "elinewidth": 1}
        axis.errorbar(places[name], value, bars[name], **look)
    axis.set_ylabel("test perplexity")
    _limit(axis, values, [y for name, v in values.items() for y in (v, v - bars[name], v + bars[name])], HIGHEST)


def draw(
    path: Path,
    *,
    costs: dict[str, float],
    times: dict[str, float],
    tests: dict[str, list[float]],
    curves: dict[str, dict[float, float]],
) -> None:
    """Draws all panels.

    Args:
        path: of the SVG file.
        costs: of each variant, multiply-adds against the dense model of the preset.
        times: of some variants, the time of a token against that of the dense model, at the paper's size; the panel is
            left out if there are none.
        tests: test perplexity of the variants in ``costs``, seed by seed.
        curves: validation perplexity of some of them, by epoch.
    """
    # An interval of fewer seeds is too wide to be drawn.
    means = {
        name: mean(values if len(values) >= SEEDS else [sum(values) / len(values)]) for name, values in tests.items()
    }
    with panels(path, 2 + bool(times), same_scales=False) as (left, *middle, right):
        _against(left, costs, means)
        left.set_title(f"bars: 95% intervals, for {SEEDS} seeds or more, cut at the axis", fontsize="small")
        words = "multiply-adds a token, gate and softmax included, of dense;\nequal ones stand side by side"
        left.set_xlabel(words, fontsize="small")
        for axis in middle:
            _against(axis, times, means)
            axis.set_title("the same perplexities, times of 2 x 1536", fontsize="small")
            axis.set_xlabel("measured time of a token on one CPU core, of dense", fontsize="small")
        found = {name: curve for name, curve in curves.items() if curve}
        for name, curve in found.items():
            right.plot(list(curve), list(curve.values()), **_look(name), label=name, markersize=3, linewidth=1)
        right.set_xlabel("epoch", fontsize="small")
        right.set_ylabel("validation perplexity, mean over seeds")
        if found:
            best = {name: min(curve.values()) for name, curve in found.items()}
            _limit(right, best, [y for curve in found.values() for y in curve.values()], HIGHEST_IN_CURVES)
        shown = {method_of(name) for name in tests}
        entries = {method: {"color": color} for method, color in METHODS.items() if method in shown}
        ends = {name.rpartition("-")[2] for name in tests}
        for end, marker in MARKERS.items():
            if end in ends:
                label = "no sparsity" if end == "dense" else f"sparsity {end}"
                entries[label] = {"marker": marker, "linestyle": "none"}
        legend(left.figure, entries)
