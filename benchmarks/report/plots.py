"""Figures as SVG files that are the same, byte for byte, whenever they are drawn from the same data."""

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


@contextlib.contextmanager
def panels(path: Path, number: int, *, across: int = 3) -> Iterator[list[Any]]:
    """Axes to draw on, ``number`` of them with at most ``across`` in a row; the figure is saved at the end."""
    # Start from matplotlib's own settings, not from the user's.
    with mpl.rc_context({**mpl.rcParamsDefault, **SETTINGS}):
        columns = min(across, number)
        rows = -(-number // columns)
        size = (4.4 * columns, 3.8 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for axis in axes.flat[number:]:
            axis.set_axis_off()
        yield list(axes.flat[:number])
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
