"""Scores without a gate: the norm of what meets a block, times the norm of the block.

    score of block (r, c) = ||x_r|| * ||w_rc||_F

is the most that the block can add to the norm of y (Cauchy and Schwarz). Nothing is learned, and next to nothing is
computed for an input: K squares and R * C products. Norms of blocks change only when the weight does, so whoever runs
many steps with one weight takes them first (``prepare`` and ``with_norms`` in ``bwds.linear``).
"""

import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from bwds.array_types import Array, Float
from bwds.axes import all_columns
from pallas_kernels.explicit_axes import takes_explicit_axes

# Where squares leave the range of float32 norms are infinite, and infinity times zero is no number. All that is larger
# counts as this, whose square is in range.
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
        return all_columns(_norm(w, (2, 3)).T)
    bk, bn = block_shape
    return all_columns(_norm(w.reshape(w.shape[0] // bk, bk, w.shape[1] // bn, bn), (1, 3)))


def norm_scores(x: Float[Array, "*b K"], norms: Float[Array, "R C"]) -> Float[Array, "*b R C"]:
    """Scores of all blocks, float32 [..., R, C], without a gradient.

    Args:
        x: input [..., K], K being a multiple of R.
        norms: as ``block_norms`` gives them.
    """
    num_rows = norms.shape[0]
    parts = lax.stop_gradient(x).astype(jnp.float32).reshape(*x.shape[:-1], num_rows, x.shape[-1] // num_rows)
    return _norm(parts, -1)[..., None] * jnp.expand_dims(norms, tuple(range(x.ndim - 1)))
