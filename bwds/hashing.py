"""Scores that choose blocks by a hash of the input: the control for what a gate learns."""

import jax.numpy as jnp

from bwds.array_types import Array, Float


def hashed_scores(x: Float[Array, "*b K"], num_blocks: int) -> Float[Array, "*b n"]:
    """Pseudo-random scores that are a function of which features of the row are positive.

    A single flipped sign changes all scores. Values are not hashed, so rounding, which differs between compilations,
    seldom matters: evaluations of the same text choose the same blocks. A feature that dropout sets to zero counts as
    not positive, so in training with dropout every occurrence of a token has a choice of its own.

    Args:
        x: input [..., K].
        num_blocks: n.

    Returns:
        Whole numbers in [0, 2^24), float32 [..., n].
    """

    def mix(h):
        """The last step of MurmurHash3 with 32 bits (Appleby): every bit of the input changes all of the output."""
        h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
        h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
        return h ^ (h >> 16)

    def numbered(n):
        numbers = mix(jnp.arange(1, n + 1, dtype=jnp.uint32))
        return jnp.expand_dims(numbers, tuple(range(x.ndim - 1)))

    row = jnp.where(x > 0, numbered(x.shape[-1]), jnp.uint32(0)).sum(-1, keepdims=True, dtype=jnp.uint32)
    return (mix(mix(row) + numbered(num_blocks)) >> 8).astype(jnp.float32)
