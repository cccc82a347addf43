"""What all figures share: settings of their own, whatever the user's are, and files that are always the same."""

import contextlib
import functools
import importlib.util
import io
import struct
from collections.abc import Iterator
from typing import Any

from bwds.checks import require

# These are applied to matplotlib's defaults, not to the user's settings. Text stays text in SVG files.
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
    """An empty figure, ``width`` and ``height`` in inches, which a notebook shows as the last value of a cell."""
    # It is made without pyplot, which would look for a screen and keep every figure.
    figure = mpl.figure.Figure(figsize=(width, height), layout="constrained")
    # A notebook cannot show a figure of matplotlib by itself before pyplot has drawn one.
    figure._repr_png_ = functools.partial(file_of, figure, "png", dpi=100)
    return figure


def file_of(figure: Any, kind: str, *, dpi: int = 160) -> bytes:
    """The bytes of a figure as a file; the same figure always gives the same bytes.

    Example:
        ```python
        figure = bwds.plots.usage_maps({"layer_0/input": np.full((4, 16), 0.5)}, (64, 64), cell="lstm")
        svg = bwds.plots.file_of(figure, "svg")
        ```

    Args:
        figure: a ``matplotlib.figure.Figure``.
        kind: "png" or "svg".
        dpi: pixels per inch of a PNG.

    Raises:
        ValueError: matplotlib is not installed, or does not know the kind.
    """
    file = io.BytesIO()
    with settings():
        figure.savefig(file, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return file.getvalue()


def png_of(figure: Any) -> tuple[bytes, tuple[int, int]]:
    """The bytes of a figure as a PNG at the resolution of a screen, 100 pixels per inch, and its size in pixels.

    Example:
        ```python
        figure = bwds.plots.usage_maps({"layer_0/input": np.full((4, 16), 0.5)}, (64, 64), cell="lstm")
        png, (width, height) = bwds.plots.png_of(figure)
        ```

    Args:
        figure: a ``matplotlib.figure.Figure``.

    Returns:
        The bytes, and (width, height).

    Raises:
        ValueError: matplotlib is not installed.
    """
    png = file_of(figure, "png", dpi=100)
    # The header, after 8 bytes of signature and 8 of the chunk's length and name.
    width, height = struct.unpack(">II", png[16:24])
    return png, (width, height)
