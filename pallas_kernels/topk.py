"""Marks the k largest of many scores, by a search for the k-th largest instead of a sort.

Scores become integers in the same order, and bisection over their 32 bits finds the k-th largest: 32 times, count how
many are at least as large. Bisection over the index then settles ties. It takes a traced k, and every row its own
threshold. On a CPU that is many times faster than ``lax.top_k``. On an accelerator each count would be a launch or two,
and a test for ties a wait for the host, so there the whole search is one kernel (``topk_kernels``).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32


@jax.jit
def largest(scores: Float[Array, "*b n"], k: int | Int32[Array, ""]) -> Bool[Array, "*b n"]:
    """Marks the ``k`` largest of the last axis; among equals the first ones.

    Args:
        scores: floating-point numbers, compared as float32; -0.0 equals 0.0.
        k: between 1 and n, an int or a traced scalar.
    """
    flat = scores.reshape(-1, scores.shape[-1])
    return _by_platform(flat, jnp.asarray(k, jnp.int32)).reshape(scores.shape)


@jax.custom_batching.custom_vmap
def _by_platform(scores, k):
    from pallas_kernels import topk_kernels

    kernels: dict[str, Callable[..., Any]] = {}
    if scores.size > 0 and scores.shape[-1] <= topk_kernels.MAX_SCORES:
        kernels = {"tpu": topk_kernels.largest_tpu, "cuda": topk_kernels.largest_cuda}
    return lax.platform_dependent(scores, k, **kernels, default=_bisected)


@_by_platform.def_vmap
def _(size, batched, scores, k):
    if batched[1]:
        scores = scores if batched[0] else jnp.broadcast_to(scores, (size, *scores.shape))
        return lax.map(lambda pair: _by_platform(*pair), (scores, k)), True
    return _by_platform(scores.reshape(-1, scores.shape[-1]), k).reshape(scores.shape), True


def sortable(scores):
    """Integers in the same order as the scores in float32; -0.0 and 0.0 are one value."""
    scores = scores.astype(jnp.float32)
    bits = lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def bisect(low, high, accept, steps: int):
    """Largest value in [low, high) for which ``accept`` holds, in ``steps`` halvings.

    It holds for ``low`` and is decreasing. ``low`` and ``high`` are int32 arrays.
    """

    def halve(_, bounds):
        low, high = bounds
        # Mean of two integers without overflow.
        middle = (low & high) + ((low ^ high) >> 1)
        ok = accept(middle)
        return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

    return lax.fori_loop(0, steps, halve, (low, high))[0]


LOWEST, HIGHEST = -(2**31), 2**31 - 1


def _bisected(scores, k):
    keys = sortable(scores)
    n = keys.shape[1]

    def count(mask):
        return mask.sum(1, keepdims=True, dtype=jnp.int32)

    # From the keys, so that the loop carries what varies over the same mesh axes as they.
    zero = keys[:, :1] & 0
    threshold = bisect(zero + LOWEST, zero + HIGHEST, lambda middle: count(keys >= middle) >= k, 32)

    def break_ties():
        above, equal = keys > threshold, keys == threshold
        index = lax.broadcasted_iota(jnp.int32, keys.shape, 1)
        room = k - count(above)
        last = bisect(zero, zero + (n + 1), lambda end: count(equal & (index < end)) <= room, (n + 1).bit_length())
        return above | (equal & (index < last))

    at_least = keys >= threshold
    return lax.cond((count(at_least) == k).all(), lambda: at_least, break_ties)
