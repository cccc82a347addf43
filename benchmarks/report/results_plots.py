"""The plots of docs/results.md: perplexity against cost, and by epoch. Outliers do not set the scale."""

import math
from itertools import groupby
from pathlib import Path

from benchmarks.quality.intervals import Estimate
from benchmarks.report.plots import panels

HIGHEST, HIGHEST_IN_CURVES = 1.4, 1.8
"""Upper ends of the axes, against the lowest value."""


def draw(
    path: Path, *, costs: dict[str, float], tests: dict[str, Estimate], curves: dict[str, dict[float, float]]
) -> None:
    """Draws both; a value beyond the upper end stands there as a number with an arrow.

    Args:
        path: of the SVG file.
        costs: of each variant, multiply-adds against the dense model of the preset.
        tests: test perplexity of the same variants.
        curves: validation perplexity of some of them, by epoch.
    """
    with panels(path, 2) as (left, right):
        low = min(test.value for test in tests.values())
        left.set_ylim(0.97 * low, HIGHEST * low)
        edge = 0.99 * HIGHEST * low
        series = groupby(tests, lambda name: name.rpartition("-")[0].removesuffix("-equal") or "dense")
        for number, (label, members) in enumerate(series):
            names = list(members)
            x, y = [costs[name] for name in names], [min(tests[name].value, edge) for name in names]
            half = [math.nan if tests[name].half_width is None else tests[name].half_width for name in names]
            left.errorbar(x, y, half, fmt="o-", color=f"C{number}", label=label, capsize=3, linewidth=1)
            for name, *place in zip(names, x, y, strict=True):
                # The end of a name is its sparsity.
                tag = name.rpartition("-")[2].replace("dense", "")
                tag += f" ↑ {tests[name].value:.0f}" * (tests[name].value > edge)
                left.annotate(tag, place, (4, 4), textcoords="offset points", fontsize="xx-small")
        left.set_xlabel("multiply-adds a token, gate and softmax included, of dense", fontsize="small")
        left.set_ylabel("test perplexity")
        best = {name: min(found.values()) for name, found in curves.items() if found}
        if best:
            right.set_ylim(0.97 * min(best.values()), HIGHEST_IN_CURVES * min(best.values()))
        for name, lowest in best.items():
            label = name + f" ↑ {lowest:.0f}" * (lowest > HIGHEST_IN_CURVES * min(best.values()))
            right.plot(list(curves[name]), list(curves[name].values()), ".-", label=label, linewidth=1)
        right.set_xlabel("epoch", fontsize="small")
        right.set_ylabel("validation perplexity, mean over seeds")
        for axis in (left, right):
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize="xx-small", frameon=False)
