"""Scores without a gate: the norm of what meets a block, times the norm of the block.

    score of block (r, c) = ||x_r|| * ||w_rc||_F

is the most that the block can add to the norm of y (Cauchy and Schwarz). Nothing is learned, and an input costs only K
squares and R * C products. Norms of blocks change only when the weight does, so a loop of many steps with one weight
computes them first (``prepare`` and ``with_norms`` in ``bwds.linear``).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from bwds.arguments import as_array, plain
from bwds.array_types import Array, Float
from bwds.checks import require
from bwds.collectives import all_gather_columns, global_shape
from pallas_kernels.explicit_axes import takes_explicit_axes

# A norm whose square leaves the range of float32 is infinite, and infinity times zero is NaN. So larger norms count as
# this one, whose square is in range.
LARGEST = 1e18


def _norm(array, axis):
    return jnp.minimum(jnp.sqrt(jnp.square(array).sum(axis)), LARGEST)


@takes_explicit_axes(lambda *_, **__: PartitionSpec())
def block_norms(w: Float[Array, "..."], block_shape: tuple[int, int]) -> Float[Array, "R C"]:
    """Frobenius norms of all blocks of a weight, float32 [R, C], without a gradient.

    Args:
        w: [K, N], or block-major [C, R, K/R, N/C]; where its columns are spread along ``model``, the norms are those of
            all columns, the same on all devices.
        block_shape: (K/R, N/C).
    """
    w = lax.stop_gradient(w).astype(jnp.float32)
    if w.ndim == 4:
        return all_gather_columns(_norm(w, (2, 3)).T)
    bk, bn = block_shape
    return all_gather_columns(_norm(w.reshape(w.shape[0] // bk, bk, w.shape[1] // bn, bn), (1, 3)))


def norm_scores(x: Float[Array, "*b K"], norms: Float[Array, "R C"]) -> Float[Array, "*b R C"]:
    """Scores of all blocks, float32 [..., R, C], without a gradient.

    Args:
        x: input [..., K], K being a multiple of R.
        norms: as ``block_norms`` gives them.
    """
    norms, num_rows = lax.stop_gradient(norms), norms.shape[0]
    parts = lax.stop_gradient(x).astype(jnp.float32).reshape(*x.shape[:-1], num_rows, x.shape[-1] // num_rows)
    return _norm(parts, -1)[..., None] * jnp.expand_dims(norms, tuple(range(x.ndim - 1)))


def known_norms(params: Any, num_features: int, grid: tuple[int, int], w: Any) -> Float[Array, "R C"]:
    """Norms of blocks, from ``params`` or computed of ``w``; ``ValueError`` unless they fit the input and the grid."""
    gate, (r, c) = plain("params", params), grid
    require(num_features % r == 0, f"x has {num_features} features, which {r} rows of blocks do not divide.")
    if w is None:
        shapes = {name: np.shape(value) for name, value in gate.items()}
        require(
            shapes == {"norms": grid},
            f"params have shapes {shapes}; scores of the source 'norm' need the weight, as w, or its norms: "
            f"{{'norms': {grid}}}.",
        )
        return gate["norms"].astype(jnp.float32)
    require(not gate, f"params hold {', '.join(gate)} and w is given; the source 'norm' takes one of the two.")
    w = as_array("w", w)
    # Under ``shard_map`` a device may have its share of the columns.
    columns = {2: lambda: global_shape(w)[1], 4: lambda: c * w.shape[3]}.get(w.ndim, lambda: 0)()
    block = (num_features // r, columns // c)
    right = w.shape[0] == num_features if w.ndim == 2 else w.shape == (c, r, *block)
    require(
        right and columns > 0 and columns % c == 0,
        f"w has shape {w.shape}; for x of {num_features} features and {r} x {c} blocks it must be [{num_features}, N] "
        f"with N a multiple of {c}, or block-major [{c}, {r}, {num_features // r}, N/{c}].",
    )
    return block_norms(w, block)
