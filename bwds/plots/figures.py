"""What all figures share: settings that are not those of the user's matplotlib, and files that are always the same."""

import contextlib
import functools
import importlib.util
import io
import struct
from collections.abc import Iterator
from typing import Any

from bwds.checks import require

# What no one chose: settings of matplotlib's own, whatever those of the user, and text as text in SVG files.
SETTINGS = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,  # A dollar is a token.
    "svg.fonttype": "none",
    "svg.hashsalt": "bwds",
    "figure.dpi": 100,
    "savefig.dpi": 160,
}


def is_available() -> bool:
    """Whether matplotlib is installed.

    Example:
        ```python
        if bwds.plots.is_available():
            bwds.plots.curves({"dense": [(100, 310.0), (200, 180.0)]}).savefig("curves.svg")
        ```
    """
    return importlib.util.find_spec("matplotlib") is not None


@contextlib.contextmanager
def settings() -> Iterator[Any]:
    """The module ``matplotlib`` with our settings.

    Raises:
        ValueError: it is not installed.
    """
    require(
        is_available(), 'Figures need matplotlib, which is not installed: pip install -e ".[plots]" in a clone of bwds.'
    )
    import matplotlib as mpl
    import matplotlib.figure

    with mpl.rc_context({**mpl.rcParamsDefault, **SETTINGS}):
        yield mpl


def new_figure(mpl: Any, width: float, height: float) -> Any:
    """An empty figure of so many inches, which a notebook shows as the last value of a cell."""
    # Without pyplot: it would look for a screen, and keep every figure.
    figure = mpl.figure.Figure(figsize=(width, height), layout="constrained")
    # Notebooks know how to show figures of matplotlib only once pyplot has drawn one.
    figure._repr_png_ = functools.partial(file_of, figure, "png", dpi=100)
    return figure


def file_of(figure: Any, kind: str, *, dpi: int = 160) -> bytes:
    """A figure as a file, "png" with so many pixels an inch, or "svg"; the same bytes whenever it is drawn.

    Example:
        ```python
        figure = bwds.plots.usage_maps({"layer_0/input": np.full((4, 16), 0.5)}, (64, 64), cell="lstm")
        svg = bwds.plots.file_of(figure, "svg")
        ```
    """
    file = io.BytesIO()
    with settings():
        figure.savefig(file, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return file.getvalue()


def png_of(figure: Any) -> tuple[bytes, tuple[int, int]]:
    """A figure as a PNG file, and its width and height in pixels, at the resolution of a screen.

    Example:
        ```python
        figure = bwds.plots.usage_maps({"layer_0/input": np.full((4, 16), 0.5)}, (64, 64), cell="lstm")
        png, (width, height) = bwds.plots.png_of(figure)
        ```
    """
    png = file_of(figure, "png", dpi=100)
    # The header, after 8 bytes of signature and 8 of the chunk's length and name.
    width, height = struct.unpack(">II", png[16:24])
    return png, (width, height)
