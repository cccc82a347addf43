"""Decisions that depend on sizes, also where a size is a symbol: ``jax.export`` for any batch or length.

Only the constraints of a symbol are known. Where they do not decide, the answer is one that is right for every size.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.errors import InconclusiveDimensionOperation

FEW_ROWS = 16
"""Up to so many rows a product is bound by the bytes of the weight, and skips the blocks that no row keeps."""


def at_most(size: Any, limit: int) -> bool:
    """Whether a size is known to be ``limit`` or less."""
    try:
        return bool(size <= limit)
    except InconclusiveDimensionOperation:
        return False


def is_known(*sizes: Any) -> bool:
    """Whether all sizes are numbers, which a kernel's grid needs."""
    return all(isinstance(size, int) for size in sizes)


def one_at_least(size: Any) -> float | jax.Array:
    """A number to divide by: the size, or 1 for none."""
    return max(size, 1) if is_known(size) else jnp.maximum(jnp.asarray(size), 1)
