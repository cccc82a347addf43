"""Curves of validation perplexity."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bwds.checks import require
from bwds.plots.figures import new_figure, settings


def curves(runs: Mapping[str, Sequence[tuple[int, float]]]) -> Any:
    """Validation perplexity by step, one line for each run; the legend shows the lowest value of each.

    The axis ends at about three times the lowest value, so that the first steps of a run do not set the scale.

    Example:
        ```python
        runs = {"dense": [(100, 310.0), (200, 180.0)], "half of the blocks": [(100, 330.0), (200, 190.0)]}
        figure = bwds.plots.curves(runs)
        figure.savefig("curves.svg")
        ```

    Args:
        runs: for every run, by name, pairs of a step and a perplexity.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: matplotlib is not installed, there is no run, or a run has no finite perplexity.
    """
    for name, points in runs.items():
        require(any(math.isfinite(value) for _, value in points), f"The run {name} has no validation perplexity yet.")
    require(len(runs) > 0, "There are no runs to draw.")
    with settings() as mpl:
        figure = new_figure(mpl, 5.2, 3.2)
        axes = figure.subplots()
        lowest = {name: min(value for _, value in points) for name, points in runs.items()}
        low = min(lowest.values())
        high = max(min(3.0 * low, max(value for points in runs.values() for _, value in points)), *lowest.values())
        for number, (name, points) in enumerate(runs.items()):
            steps, values = zip(*points, strict=True)
            label = f"{name}  {lowest[name]:.2f}"
            axes.plot(steps, values, marker="o", markersize=2.5, linewidth=1.2, color=f"C{number % 10}", label=label)
        axes.set_yscale("log")
        axes.set_ylim(0.96 * low, 1.04 * high)
        ticks = mpl.ticker.MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        axes.set_yticks([tick for tick in ticks if 0.96 * low <= tick <= 1.04 * high])
        axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
        axes.xaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
        axes.set_xlim(left=0)
        axes.set_xlabel("training steps")
        axes.set_ylabel("validation perplexity")
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        axes.legend(frameon=False, fontsize=7, title="run, lowest", title_fontsize=7, alignment="left")
        return figure
