"""Dropout as functions of an explicit key."""

import jax
import jax.numpy as jnp

from bwds.array_types import Array, Float


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
    shape = (x.shape[0], 1, x.shape[2]) if locked else x.shape
    kept = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)
