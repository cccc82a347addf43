"""Figures of the blocks that a model keeps, and of how runs went. They need matplotlib, the extra ``plots``.

Every function returns a ``matplotlib.figure.Figure``, which belongs to no window: ``figure.savefig("usage.png")``.

    text = measure_usage(params, config.model, ids, config.data, vocabulary.eos_id)     # bwds.training.usage
    figure = bwds.plots.usage_maps({name: matrix.used for name, matrix in text.matrices.items()}, config.model)
"""

import contextlib
import importlib.util
import io
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bwds.array_types import Bool, Float
from bwds.checks import require
from bwds.config import ModelConfig

PARTS = {"lstm": "ifgo", "qrnn": "zfo"}
"""The parts of a cell, side by side in the columns of its matrices."""

OMITTED, KEPT, NEWLY_KEPT = "#e9ebed", "#8896a5", "#c2571a"
USED = "viridis"
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
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextlib.contextmanager
def _settings() -> Iterator[Any]:
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


def _figure(mpl: Any, width: float, height: float) -> Any:
    # Without pyplot: it would look for a screen, and keep every figure.
    return mpl.figure.Figure(figsize=(width, height), layout="constrained")


def file_of(figure: Any, kind: str, *, dpi: int = 160) -> bytes:
    """A figure as a file, "png" with so many pixels an inch, or "svg"; the same bytes whenever it is drawn."""
    file = io.BytesIO()
    with _settings():
        figure.savefig(file, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return file.getvalue()


def png_of(figure: Any) -> tuple[bytes, tuple[int, int]]:
    """A figure as a PNG file, and its width and height in pixels, at the resolution of a screen."""
    png = file_of(figure, "png", dpi=100)
    # The header, after 8 bytes of signature and 8 of the chunk's length and name.
    width, height = struct.unpack(">II", png[16:24])
    return png, (width, height)


def title_of(name: str) -> str:
    """A matrix by the name it has in ``Info.usage``, for readers."""
    layer, _, part = name.partition("/")
    return f"{layer.replace('_', ' ')}, {part}"


def _in_order(names: Iterable[str]) -> list[str]:
    """Names of matrices as a model applies them: by layer, the input's before the one on the hidden state."""

    def place(name: str) -> tuple[int, str, bool, str]:
        layer, _, part = name.partition("/")
        number = layer.rpartition("_")[2]
        return int(number) if number.isdecimal() else 0, layer, part != "input", part

    return sorted(names, key=place)


def kept_map(kept: Mapping[str, Bool[Any, "T R C"]], tokens: Sequence[str], config: ModelConfig) -> Any:
    """The blocks that each token of a sentence keeps: one panel a matrix, in it one small matrix a token.

    Those that the token before did not keep are coloured, so that it shows how much the choice moves.

    Args:
        kept: for every gated matrix, by name, which blocks each of T tokens kept, [T, R, C].
        tokens: the T tokens, as they are to be shown.
        config: the model's.

    Raises:
        ValueError: matplotlib is not installed, there is no matrix or no token, or the numbers of tokens differ.
    """
    kept = {name: np.asarray(kept[name], bool) for name in _in_order(kept)}
    _check(kept, {len(tokens)}, f"{len(tokens)} tokens")
    with _settings() as mpl:
        rows = next(iter(kept.values())).shape[1]
        figure = _figure(
            mpl, _width(len(kept)), 0.7 + _down(kept) * (0.4 + len(tokens) * max(0.17, 0.024 * (rows + 2)))
        )
        colours = mpl.colors.ListedColormap([OMITTED, KEPT, NEWLY_KEPT])
        for axes, (name, marks) in zip(_panels(figure, len(kept)), kept.items(), strict=True):
            before = np.concatenate([marks[:1], marks[:-1]])
            state = np.where(marks, np.where(before, 1, 2), 0)
            t, r, c = state.shape
            # A blank line below each token's matrix; NaN is drawn as nothing.
            gap = 1 + r // 4
            image = np.concatenate([state, np.full((t, gap, c), np.nan)], axis=1).reshape(t * (r + gap), c)
            axes.imshow(image, cmap=colours, vmin=0, vmax=2, aspect="auto", interpolation="nearest")
            axes.set_yticks(
                np.arange(t) * (r + gap) + (r - 1) / 2, tokens if axes.get_subplotspec().is_first_col() else []
            )
            axes.tick_params(axis="y", length=0)
            axes.set_title(title_of(name))
            _mark_parts(axes, c, config)
            for spine in axes.spines.values():
                spine.set_visible(False)
        labels = {"kept, as by the token before": KEPT, "kept, not by the token before": NEWLY_KEPT, "omitted": OMITTED}
        handles = [mpl.patches.Patch(color=colour, label=label) for label, colour in labels.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
        figure.supxlabel(_columns_label(config), fontsize=8)
        return figure


def usage_maps(used: Mapping[str, Float[Any, "R C"]], config: ModelConfig) -> Any:
    """How often each block is used: one panel a matrix, all in the same colours from 0 to 1.

    Args:
        used: for every gated matrix, by name, the share of inputs that use each block, [R, C], as in ``Info.usage``.
        config: the model's.

    Raises:
        ValueError: matplotlib is not installed, or there is no matrix.
    """
    used = {name: np.asarray(used[name], float) for name in _in_order(used)}
    _check(used)
    with _settings() as mpl:
        r, c = next(iter(used.values())).shape
        across = min(2, len(used))
        down = -(-len(used) // across)
        size = 3.4 / max(c, 1)
        figure = _figure(mpl, 3.7 * across + 0.8, down * (max(0.7, size * r) + 0.5) + 0.35)
        panels = figure.subplots(down, across, squeeze=False)
        for axes in panels.flat[len(used) :]:
            axes.set_axis_off()
        image = None
        for axes, (name, share) in zip(panels.flat, used.items(), strict=False):
            image = axes.imshow(share, cmap=USED, vmin=0, vmax=1, aspect="equal", interpolation="nearest")
            axes.set_title(title_of(name))
            axes.set_yticks([0, share.shape[0] - 1], ["1", str(share.shape[0])])
            _mark_parts(axes, share.shape[1], config)
        figure.colorbar(image, ax=panels, label="share of inputs that use the block", shrink=0.9, aspect=25)
        figure.supxlabel(_columns_label(config), fontsize=8)
        figure.supylabel(f"block row ({config.block_size} inputs each)", fontsize=8)
        return figure


def usage_by_group(used: Mapping[str, Float[Any, "G R C"]], labels: Sequence[str], config: ModelConfig) -> Any:
    """How often each block is used by the inputs of each group, such as a frequent token or a class of tokens.

    One panel a matrix, one line a group, blocks from the most to the least used: a gate that ignores the group has the
    same line for all. A group that does not occur stays blank.

    Args:
        used: for every gated matrix, by name, the share of the inputs of each of G groups that use each block,
            [G, R, C].
        labels: the names of the groups.
        config: the model's.

    Raises:
        ValueError: matplotlib is not installed, there is no matrix or no group, or the numbers of groups differ.
    """
    used = {name: np.asarray(used[name], float) for name in _in_order(used)}
    _check(used, {len(labels)}, f"{len(labels)} labels")
    with _settings() as mpl:
        figure = _figure(mpl, _width(len(used)) + 0.6, 0.4 + _down(used) * (0.4 + 0.17 * len(labels)))
        panels = _panels(figure, len(used))
        image = None
        for axes, (name, share) in zip(panels, used.items(), strict=True):
            flat = share.reshape(len(share), -1)
            known = flat[~np.isnan(flat).any(1)]
            order = np.argsort(-known.mean(0), kind="stable") if len(known) else np.arange(flat.shape[1])
            image = axes.imshow(flat[:, order], cmap=USED, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axes.set_yticks(range(len(labels)), labels if axes.get_subplotspec().is_first_col() else [])
            axes.tick_params(axis="y", length=0)
            axes.set_xticks([0, flat.shape[1] - 1], ["1", str(flat.shape[1])])
            axes.set_title(title_of(name))
        figure.colorbar(image, ax=panels, label="share of inputs that\nuse the block", aspect=15)
        size = config.block_size
        figure.supxlabel(f"blocks of {size} x {size}, in each matrix from the most to the least used", fontsize=8)
        return figure


def curves(runs: Mapping[str, Sequence[tuple[int, float]]]) -> Any:
    """Validation perplexity by step, a line a run; the legend has its lowest value.

    What is more than three times the lowest of all is beyond the upper end, so that the first steps of a run do not set
    the scale.

    Args:
        runs: for every run, by name, steps and perplexities.

    Raises:
        ValueError: matplotlib is not installed, or a run has no finite perplexity.
    """
    for name, points in runs.items():
        require(any(math.isfinite(value) for _, value in points), f"The run {name} has no validation perplexity yet.")
    require(len(runs) > 0, "There are no runs to draw.")
    with _settings() as mpl:
        figure = _figure(mpl, 5.2, 3.2)
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


def _check(arrays: Mapping[str, np.ndarray], lengths: set[int] | None = None, words: str = "") -> None:
    require(len(arrays) > 0, "There are no gated matrices to draw; only a dynamic model has them.")
    if lengths is not None:
        require(lengths != {0}, "There is nothing to draw: no token and no group is given.")
        found = {len(array) for array in arrays.values()}
        require(found == lengths, f"There are {words}; the arrays have a first axis of {sorted(found)}.")


def _width(panels: int) -> float:
    return 1.0 + min(4, panels) * (3.2 if panels == 1 else 2.4 if panels == 2 else 1.9)


def _down(arrays: Mapping[str, Any]) -> int:
    """Rows of panels."""
    return -(-len(arrays) // 4)


def _panels(figure: Any, number: int) -> list[Any]:
    """Panels side by side, four in a row."""
    across = min(4, number)
    made = figure.subplots(-(-number // 4), across, squeeze=False)
    for axes in made.flat[number:]:
        axes.set_axis_off()
    return list(made.flat[:number])


def _mark_parts(axes: Any, columns: int, config: ModelConfig) -> None:
    """The parts of the cell below their columns, and lines between them."""
    parts = PARTS[config.cell]
    width = columns / len(parts)
    axes.set_xticks([(i + 0.5) * width - 0.5 for i in range(len(parts))], list(parts))
    axes.tick_params(axis="x", length=0)
    for i in range(1, len(parts)):
        axes.axvline(i * width - 0.5, color="white", linewidth=1.0)


def _columns_label(config: ModelConfig) -> str:
    names = {"i": "input", "f": "forget", "g": "candidate", "z": "candidate", "o": "output"}
    parts = ", ".join(f"{part} {names[part]}" for part in PARTS[config.cell])
    return f"block column ({config.block_size} outputs each), by part of the cell: {parts}"
