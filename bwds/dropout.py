"""Dropout as functions of an explicit key."""

from functools import partial

import jax
import jax.numpy as jnp

from bwds.array_types import Array, Float
from bwds.axes import global_rows


def dropout(key: Array | None, x: Float[Array, "B T H"], rate: float, *, locked: bool = False) -> Float[Array, "B T H"]:
    """Zeroes features with probability ``rate`` and scales the others by 1 / (1 - rate).

    Args:
        key: random key; None: no dropout.
        x: [B, T, H].
        rate: in [0, 1).
        locked: one mask for all time steps (variational dropout, Gal and Ghahramani, arXiv 1512.05287).

    Raises:
        ValueError: ``rate`` is outside [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"The dropout rate is {rate}; it must be at least 0 and less than 1.")
    if key is None or rate == 0.0:
        return x
    shape = (1, x.shape[2]) if locked else x.shape[1:]
    # A key for every row, so that masks do not depend on how the batch is spread over devices.
    keys = jax.vmap(partial(jax.random.fold_in, key))(global_rows(x))
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, shape))(keys)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)
