"""Dropout as functions of an explicit key: of features, of tokens and of weights.

All three set entries to zero with probability ``rate`` and scale the others by 1 / (1 - rate), which keeps the mean.
Without a key, or at rate 0, they return their input. A rate outside [0, 1) is a ``ValueError``.
"""

from functools import partial

import jax
import jax.numpy as jnp

from bwds.array_types import Array, Float, Int
from bwds.collectives import global_rows, global_shape, local_columns


def _kept(key: Array | None, rate: float, shape: tuple[int, ...]) -> Array | None:
    """Which entries stay; None: all."""
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"The dropout rate is {rate}; it must be at least 0 and less than 1.")
    return None if key is None or rate == 0.0 else jax.random.bernoulli(key, 1.0 - rate, shape)


def _zero(x: Array, kept: Array | None, rate: float) -> Array:
    if kept is None:
        return x
    return jnp.where(kept, x / (1.0 - rate), jnp.zeros((), x.dtype)).astype(x.dtype)


def dropout(key: Array | None, x: Float[Array, "B T H"], rate: float, *, locked: bool = False) -> Float[Array, "B T H"]:
    """Drops features.

    Args:
        key: random key; None: no dropout.
        x: [B, T, H].
        rate: in [0, 1).
        locked: one mask for all time steps (variational dropout, Gal and Ghahramani, arXiv 1512.05287).
    """
    shape = (1, x.shape[2]) if locked else x.shape[1:]
    if key is None or rate == 0.0:
        return _zero(x, _kept(key, rate, shape), rate)
    # A key for every row, so that masks do not depend on how the batch is spread over devices.
    keys = jax.vmap(partial(jax.random.fold_in, key))(global_rows(x))
    return _zero(x, jax.vmap(lambda key: _kept(key, rate, shape))(keys), rate)


def embedding_dropout(
    key: Array | None, x: Float[Array, "B T H"], tokens: Int[Array, "B T"], rate: float, *, vocab_size: int
) -> Float[Array, "B T H"]:
    """Drops tokens of the vocabulary: every occurrence of a dropped token in the batch is zero (arXiv 1512.05287).

    Args:
        key: random key; None: no dropout.
        x: embeddings of the tokens, [B, T, H].
        tokens: ids [B, T].
        rate: in [0, 1).
        vocab_size: tokens in the vocabulary.
    """
    kept = _kept(key, rate, (vocab_size,))
    return _zero(x, None if kept is None else kept[tokens][..., None], rate)


def weight_dropout(key: Array | None, kernel: Float[Array, "*k"], rate: float) -> Float[Array, "*k"]:
    """Drops single weights of a matrix (DropConnect; in recurrent layers AWD-LSTM, arXiv 1708.02182).

    Args:
        key: random key; None: no dropout.
        kernel: of any shape.
        rate: in [0, 1).
    """
    kept = _kept(key, rate, global_shape(kernel))
    return _zero(kernel, None if kept is None else local_columns(kept, kernel), rate)
