"""Figures of the blocks that a model keeps: by token, by place in the matrix, by group of inputs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bwds.array_types import Bool, Float, Whole
from bwds.checks import pair, require, require_choice
from bwds.config import Cell
from bwds.plots.figures import new_figure, settings

PARTS = {"lstm": "ifgo", "qrnn": "zfo"}
"""The parts of a cell, side by side in the columns of its matrices."""

OMITTED, KEPT, NEWLY_KEPT = "#e9ebed", "#8896a5", "#c2571a"
USED = "viridis"


def title_of(name: str) -> str:
    """The title of a matrix, from its name in ``Info.usage``.

    Example:
        ```python
        assert bwds.plots.title_of("layer_0/input") == "layer 0, input"
        ```

    Args:
        name: such as "layer_0/input".
    """
    return name.replace("_", " ").replace("/", ", ")


def _in_order(names: Iterable[str]) -> list[str]:
    """Names of matrices in the order in which a model applies them: by layer, input before hidden.

    Other names keep their order.
    """

    def place(name: str) -> tuple[int, bool]:
        layer, _, part = name.partition("/")
        number = layer.rpartition("_")[2]
        return int(number) if number.isdecimal() else 0, part != "input"

    return sorted(names, key=place)


def kept_map(
    kept: Mapping[str, Bool[Any, "T R C"]],
    tokens: Sequence[str],
    block_shape: tuple[Whole, Whole],
    *,
    cell: Cell | None = None,
) -> Any:
    """The blocks that each token of a sentence keeps: a panel for each matrix, in it a small matrix for each token.

    Blocks that the token before did not keep are coloured, which shows how much the choice changes.

    Example:
        ```python
        layer = bwds.nn.BlockSparseLinear(64, 64, block_shape=(16, 16), return_gates=True, rngs=nnx.Rngs(0))
        y, gates = layer(jax.random.normal(jax.random.key(0), (3, 64)))
        figure = bwds.plots.kept_map({"hidden": gates != 0}, ["the", "company", "said"], (16, 16))
        ```

    Args:
        kept: for every gated matrix, by name, which blocks each of T tokens kept, [T, R, C].
        tokens: the T tokens, as they are to be shown.
        block_shape: rows and columns of a block.
        cell: "lstm" or "qrnn": marks the parts of the cell, which lie side by side in the columns. None: other layers.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: matplotlib is not installed, there is no matrix or no token, the numbers of tokens differ, or an
            argument has another shape or type.
    """
    kept = {name: np.asarray(kept[name], bool) for name in _in_order(kept)}
    _check(kept, "[T, R, C]", {len(tokens)}, f"{len(tokens)} tokens")
    columns_label = _columns_label(pair("block_shape", block_shape)[1], cell)
    with settings() as mpl:
        rows = max(marks.shape[1] for marks in kept.values())
        figure = new_figure(
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
            _mark_columns(axes, c, cell)
            for spine in axes.spines.values():
                spine.set_visible(False)
        labels = {"kept, as by the token before": KEPT, "kept, not by the token before": NEWLY_KEPT, "omitted": OMITTED}
        handles = [mpl.patches.Patch(color=colour, label=label) for label, colour in labels.items()]
        figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
        figure.supxlabel(columns_label, fontsize=8)
        return figure


def usage_maps(
    used: Mapping[str, Float[Any, "R C"]], block_shape: tuple[Whole, Whole], *, cell: Cell | None = None
) -> Any:
    """How often each block is used: one panel for each matrix, all in the same colours from 0 to 1.

    Example:
        ```python
        layer = bwds.nn.BlockSparseLinear(64, 64, block_shape=(16, 16), return_gates=True, rngs=nnx.Rngs(0))
        y, gates = layer(jax.random.normal(jax.random.key(0), (100, 64)))
        figure = bwds.plots.usage_maps({"hidden": (gates != 0).mean(axis=0)}, (16, 16))
        ```

    Args:
        used: for every gated matrix, by name, the share of inputs that use each block, [R, C], as in ``Info.usage``.
        block_shape: rows and columns of a block.
        cell: "lstm" or "qrnn": marks the parts of the cell, which lie side by side in the columns. None: other layers.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: matplotlib is not installed, there is no matrix, or an argument has another shape or type.
    """
    used = {name: np.asarray(used[name], float) for name in _in_order(used)}
    _check(used, "[R, C]")
    bk, bn = pair("block_shape", block_shape)
    columns_label = _columns_label(bn, cell)
    with settings() as mpl:
        r, c = np.max([share.shape for share in used.values()], axis=0)
        across = min(2, len(used))
        down = -(-len(used) // across)
        size = 3.4 / max(c, 1)
        figure = new_figure(mpl, 3.7 * across + 0.8, down * (max(0.7, size * r) + 0.5) + 0.35)
        panels = figure.subplots(down, across, squeeze=False)
        for axes in panels.flat[len(used) :]:
            axes.set_axis_off()
        image = None
        for axes, (name, share) in zip(panels.flat, used.items(), strict=False):
            image = axes.imshow(share, cmap=USED, vmin=0, vmax=1, aspect="equal", interpolation="nearest")
            axes.set_title(title_of(name))
            _mark_ends(axes.set_yticks, share.shape[0])
            _mark_columns(axes, share.shape[1], cell)
        figure.colorbar(image, ax=panels, label="share of inputs that use the block", shrink=0.9, aspect=25)
        figure.supxlabel(columns_label, fontsize=8)
        figure.supylabel(f"block row ({bk} inputs each)", fontsize=8)
        return figure


def usage_by_group(
    used: Mapping[str, Float[Any, "G R C"]], labels: Sequence[str], block_shape: tuple[Whole, Whole]
) -> Any:
    """How often each block is used by the inputs of each group, such as a frequent token or a class of images.

    There is a panel for each matrix and in it a line for each group, with blocks from the most to the least used. If a
    gate ignores the group, all lines are the same. The line of a group that does not occur is blank.

    Example:
        ```python
        layer = bwds.nn.BlockSparseLinear(64, 64, block_shape=(16, 16), return_gates=True, rngs=nnx.Rngs(0))
        y, gates = layer(jax.random.normal(jax.random.key(0), (100, 64)))
        used = bwds.nn.usage_by_label(gates, jnp.arange(100) % 2, 2)                        # [2, 4, 4]
        figure = bwds.plots.usage_by_group({"hidden": used}, ["even", "odd"], (16, 16))
        ```

    Args:
        used: for every gated matrix, by name, the share of the inputs of each of G groups that use each block,
            [G, R, C].
        labels: the names of the groups.
        block_shape: rows and columns of a block.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: matplotlib is not installed, there is no matrix or no group, the numbers of groups differ, or an
            argument has another shape or type.
    """
    used = {name: np.asarray(used[name], float) for name in _in_order(used)}
    _check(used, "[G, R, C]", {len(labels)}, f"{len(labels)} labels")
    bk, bn = pair("block_shape", block_shape)
    with settings() as mpl:
        figure = new_figure(mpl, _width(len(used)) + 0.6, 0.4 + _down(used) * (0.4 + 0.17 * len(labels)))
        panels = _panels(figure, len(used))
        image = None
        for axes, (name, share) in zip(panels, used.items(), strict=True):
            flat = share.reshape(len(share), -1)
            known = flat[~np.isnan(flat).any(1)]
            order = np.argsort(-known.mean(0), kind="stable") if len(known) else np.arange(flat.shape[1])
            image = axes.imshow(flat[:, order], cmap=USED, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            axes.set_yticks(range(len(labels)), labels if axes.get_subplotspec().is_first_col() else [])
            axes.tick_params(axis="y", length=0)
            _mark_ends(axes.set_xticks, flat.shape[1])
            axes.set_title(title_of(name))
        figure.colorbar(image, ax=panels, label="share of inputs that\nuse the block", aspect=15)
        figure.supxlabel(f"blocks of {bk} x {bn}, in each matrix from the most to the least used", fontsize=8)
        return figure


def _check(arrays: Mapping[str, np.ndarray], axes: str, lengths: set[int] | None = None, words: str = "") -> None:
    require(len(arrays) > 0, "There are no gated matrices to draw; only a dynamic model has them.")
    for name, array in arrays.items():
        right = array.ndim == axes.count(",") + 1 and all(array.shape[-2:])
        require(right, f"The array of {name!r} has shape {array.shape}; it must be {axes}.")
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


def _mark_ends(set_ticks: Callable[..., Any], number: int) -> None:
    """Ticks at the first and the last of ``number`` places, counted from 1."""
    places = sorted({0, number - 1})
    set_ticks(places, [str(place + 1) for place in places])


def _mark_columns(axes: Any, columns: int, cell: Cell | None) -> None:
    """Labels the parts of the cell below their columns, with lines between; without a cell, numbers the columns."""
    if cell is None:
        _mark_ends(axes.set_xticks, columns)
        return
    parts = PARTS[cell]
    width = columns / len(parts)
    axes.set_xticks([(i + 0.5) * width - 0.5 for i in range(len(parts))], list(parts))
    axes.tick_params(axis="x", length=0)
    for i in range(1, len(parts)):
        axes.axvline(i * width - 0.5, color="white", linewidth=1.0)


def _columns_label(width: int, cell: Cell | None) -> str:
    """The label of the columns; ``ValueError`` for an unknown cell."""
    label = f"block column ({width} outputs each)"
    if cell is None:
        return label
    require_choice("cell", cell, Cell)
    names = {"i": "input", "f": "forget", "g": "candidate", "z": "candidate", "o": "output"}
    parts = ", ".join(f"{part} {names[part]}" for part in PARTS[cell])
    return f"{label}, by part of the cell: {parts}"
