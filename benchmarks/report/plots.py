"""Figures as SVG files that are the same, byte for byte, whenever they are drawn from the same data.

In all figures a width or a method has one colour, and panels that show the same have the same scales.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl

# This comes before the import of pyplot, which looks for a screen.
mpl.use("svg")
import matplotlib.pyplot as plt

# No random ids; text stays text.
SETTINGS = {"svg.hashsalt": "bwds", "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
LEGEND = 1.5
"""Inches at the right of a figure for its legend."""
GREY = "0.35"
"""The colour of what is neither a width nor a method."""
WIDTHS = {128: "C0", 256: "C1", 512: "C2", 1024: "C3", 1536: "C4", 2048: "C5", 4096: "C6", 8192: "C9"}
"""The colour of each width; another width is black."""
METHODS = {
    "dense": "black",
    "dense-equal": "0.55",
    "magnitude": "C3",
    "magnitude-block": "C6",
    "static-block": "C5",
    "dynamic-softplus": "C0",
    "dynamic-linear": "C9",
    "dynamic-norm": "C2",
    "dynamic-bias": "C1",
    "dynamic-random": "peru",
    "dynamic-softmax": "C4",
    "dynamic-relu": "C8",
    "dynamic-low-rank": "navy",
}
"""The colour of each method of benchmarks/quality/grid.py."""


@contextlib.contextmanager
def panels(path: Path, number: int, *, across: int = 3, same_scales: bool = True) -> Iterator[list[Any]]:
    """Axes to draw on, ``number`` of them with at most ``across`` in a row; the figure is saved at the end."""
    # Start from matplotlib's own settings, not from the user's.
    with mpl.rc_context({**mpl.rcParamsDefault, **SETTINGS}):
        columns = min(across, number)
        rows = -(-number // columns)
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(4.4 * columns + LEGEND, 3.8 * rows),
            squeeze=False,
            layout="constrained",
            sharex=same_scales,
            sharey=same_scales,
        )
        for axis in axes.flat:
            axis.tick_params(labelbottom=True, labelleft=True)
        for axis in axes.flat[number:]:
            axis.set_axis_off()
        yield list(axes.flat[:number])
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def legend(place: Any, entries: dict[str, dict[str, Any]], where: str = "outside right center") -> None:
    """The legend of an axis, or of a figure at the right of all panels: {label: how its line looks}."""
    handles = [plt.Line2D([], [], **{"color": GREY, "label": label, **look}) for label, look in entries.items()]
    place.legend(handles=handles, loc=where, fontsize="small", frameon=False)
