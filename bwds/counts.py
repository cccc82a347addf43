"""How many blocks a sparsity keeps: one rule for numbers of Python and for traced ones."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bwds.array_types import Array, Int32, Real, Whole
from bwds.checks import check_sparsity, is_array, known_number, require, require_number
from bwds.config import Scope

Count = int | Int32[Array, ""]

# A sparsity counts in whole steps of this size, the smallest between float32 numbers below 1.
STEPS = 2**24
# Up to here a step is a small part of a block, and the products below fit into 32 bits.
MOST_BLOCKS = 2**20


def num_kept_blocks(num_blocks: Whole, sparsity: Real) -> int:
    """Blocks kept out of ``num_blocks``: ceil((1 - sparsity) * num_blocks), at least 1.

    Rounding errors do not count: 0.7 of 10 blocks omitted keeps 3, although (1 - 0.7) * 10 > 3 in floating point. Up to
    2**20 blocks a sparsity counts as its nearest float32 number, so that a traced sparsity keeps as many.

    Example:
        ```python
        assert bwds.num_kept_blocks(64, 0.9) == 7
        ```

    Args:
        num_blocks: a whole number, of Python, NumPy or JAX.
        sparsity: the fraction of blocks omitted, a number of Python, NumPy or JAX that is not traced.

    Returns:
        The number, from 1 to ``num_blocks``.

    Raises:
        ValueError: ``sparsity`` is outside [0, 1), or ``num_blocks`` is no whole number from 1 to 2**53.
    """
    check_sparsity(sparsity)
    omitted = float(known_number("sparsity", sparsity))
    # True is a whole number to Python, and counts as one.
    num_blocks = int(num_blocks if isinstance(num_blocks, bool) else known_number("num_blocks", num_blocks, whole=True))
    if not 1 <= num_blocks <= 2**53:
        raise ValueError(f"num_blocks is {num_blocks}; it must be a whole number, at least 1 and at most 2**53.")
    if num_blocks > MOST_BLOCKS:
        # The error of the product is at most 2.3e-16 of num_blocks, that of a computed sparsity a few times that.
        return max(1, math.ceil((1.0 - omitted) * num_blocks - 1e-15 * num_blocks))
    # Rounding to float32 and to whole steps costs three quarters of a step at most; one more step makes up for it.
    steps = round(float(np.float32(omitted)) * STEPS) + 1
    return max(1, num_blocks - steps * num_blocks // STEPS)


def kept_count(grid: tuple[int, int], sparsity: Any, scope: Scope = "matrix") -> Count:
    """Blocks kept of a (R, C) grid, or of each of its columns, for a static or a traced float32 ``sparsity``.

    A traced count is an int32. It follows the rule of ``num_kept_blocks`` in arithmetic of 32 bits.
    """
    num_blocks = grid[0] if scope == "column" else grid[0] * grid[1]
    require_number("sparsity", sparsity)
    if not is_array(sparsity):
        return num_kept_blocks(num_blocks, sparsity)
    if not isinstance(sparsity, jax.core.Tracer):
        check_sparsity(sparsity)
    require(
        num_blocks <= MOST_BLOCKS,
        f"sparsity is an array, for {num_blocks} blocks; for more than 2**20 it must be a number of Python.",
    )
    steps = jnp.round(jnp.asarray(sparsity, jnp.float32) * STEPS).clip(0, STEPS - 2).astype(jnp.uint32) + 1
    # steps * num_blocks / 2**24, the lower 12 bits of the steps apart.
    omitted = ((steps >> 12) * num_blocks + ((steps & 0xFFF) * num_blocks >> 12)) >> 12
    return num_blocks - omitted.astype(jnp.int32)
