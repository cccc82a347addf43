"""Marks the k largest of many scores, by a search for the k-th largest instead of a sort.

Scores become integers in the same order. A count tells how many of them are at least as large as a guess, and the
search ends when k are. Regula falsi makes the next guess: it interpolates between two earlier guesses by their counts.
For a quarter or a tenth of 4,096 normal scores this takes some 7 counts on average, where bisection takes 17. Every
eighth guess is the middle, so that no search takes more than 256. If scores equal to the k-th largest keep the count
from ever being k, bisection over the index settles which of them are marked. k may be traced, and every row has its own
threshold. On one core of an AMD EPYC a mask made of ``lax.top_k`` takes about twice as long for a quarter of 4,096
scores, and nine times as long for 64 such rows.

On an accelerator each count would be a launch or two, and the test for the end would wait for the host. So there the
whole search is one kernel (``tpu``, which bisects, and ``triton``). Rows that are too long for a kernel take all steps
of a bisection.
"""

import contextlib
import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from pallas_kernels.explicit_axes import spec_of, takes_explicit_axes
from pallas_kernels.mesh_axes import alike, like
from pallas_kernels.platforms import kernel_on
from pallas_kernels.sizes import is_known

MAX_SCORES = 32_768
"""Scores of one row in a kernel: 64 per thread on a GPU."""
LOWEST, HIGHEST = -(2**31), 2**31 - 1
Extremes = Callable[..., tuple[Any, Any]]
Loop = Callable[..., tuple[Any, ...]]
KERNELS = {"tpu": "tpu", "cuda": "triton"}
"""The kernel's module for each platform."""


@takes_explicit_axes(lambda scores, *_, **__: spec_of(scores))
@functools.partial(jax.jit, static_argnames="implementation")
def largest(
    scores: Float[Array, "*b n"], k: int | Int32[Array, ""], *, implementation: str | None = None
) -> Bool[Array, "*b n"]:
    """Marks the ``k`` largest of the last axis, the first ones among equals. The choice has no gradient.

    ``k`` is not checked: outside of 1 to n the result has no meaning.

    Example:
        ```python
        kept = largest(jnp.array([[0.5, 2.0, 1.0, 2.0]]), 2)
        assert kept.tolist() == [[False, True, False, True]]
        ```

    Args:
        scores: [..., n], floating-point numbers, compared as float32; -0.0 equals 0.0.
        k: between 1 and n, an int or a traced int32 scalar.
        implementation: that of the product that follows. With "xla" or "reference" no platform takes a Pallas kernel.

    Returns:
        A mask [..., n], bool, of exactly ``k`` entries in every row.
    """
    flat = lax.stop_gradient(scores).reshape(-1, scores.shape[-1])
    kernels = implementation not in ("xla", "reference")
    return _by_platform(kernels)(*alike(flat, jnp.asarray(k, jnp.int32))).reshape(scores.shape)


@functools.cache
def _by_platform(kernels: bool) -> Callable[..., Any]:
    """The search of every row of (scores [b, n], k), by platform and with a vmap."""

    @jax.custom_batching.custom_vmap
    def search_rows(scores, k):
        searches = _kernels(scores) if kernels else {}
        searches["cpu"] = functools.partial(plain, early=True)
        return lax.platform_dependent(scores, k, **searches, default=functools.partial(plain, early=False))

    @search_rows.def_vmap
    def _(size, batched, scores, k):
        if batched[1]:
            scores = scores if batched[0] else jnp.broadcast_to(scores, (size, *scores.shape))
            return lax.map(lambda pair: search_rows(*pair), (scores, k)), True
        return search_rows(scores.reshape(-1, scores.shape[-1]), k).reshape(scores.shape), True

    return search_rows


def _kernels(scores) -> dict[str, Callable[..., Any]]:
    """The kernels that this jax has for scores [b, n], by platform; none for rows that are too long."""
    rows, n = scores.shape
    if not is_known(rows) or rows == 0 or n > MAX_SCORES:
        return {}
    kernels = {}
    for platform, name in KERNELS.items():
        with contextlib.suppress(ImportError):
            module = importlib.import_module(f"pallas_kernels.topk.{name}")
            kernels[platform] = kernel_on(platform, module.largest, jax.ShapeDtypeStruct(scores.shape, bool))
    return kernels


def sortable(scores):
    """Integers in the same order as the scores in float32; -0.0 and 0.0 are one value."""
    scores = scores.astype(jnp.float32)
    bits = lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def score(keys):
    """The inverse of ``sortable``: the float32 scores of these integers."""
    return lax.bitcast_convert_type(jnp.where(keys < 0, keys ^ 0x7FFFFFFF, keys), jnp.float32)


def plain(scores, k, *, early):
    """``largest`` for every row of ``scores`` [b, n] with plain operations; ``early``: see ``search``."""
    keys = sortable(scores)
    zero = like(jnp.zeros((keys.shape[0], 1), jnp.int32), keys)

    def count(mask):
        return mask.sum(1, keepdims=True, dtype=jnp.int32)

    def extremes(keys):
        return keys.min(1, keepdims=True), keys.max(1, keepdims=True)

    index = lax.broadcasted_iota(jnp.int32, keys.shape, 1)
    extremes_of = extremes if early else None
    return search(keys, index, zero, count, k, keys.shape[1], early=early, extremes=extremes_of, loop=_packed_loop)


def _packed_loop(is_open, step, state):
    """``lax.while_loop`` over a tuple of columns [b, 1] of four bytes, held as one array.

    A CPU computes each array of a loop's state in a function of its own, and calling one costs more than what it does.
    """
    dtypes = [column.dtype for column in state]

    def pack(state):
        return jnp.concatenate([lax.bitcast_convert_type(column, jnp.int32) for column in state], axis=1)

    def unpack(packed):
        columns = jnp.split(packed, len(dtypes), axis=1)
        return tuple(lax.bitcast_convert_type(c, dtype) for c, dtype in zip(columns, dtypes, strict=True))

    packed = lax.while_loop(lambda p: is_open(unpack(p)), lambda p: pack(step(unpack(p))), pack(state))
    return unpack(packed)


def search_in_kernel(scores, k, n: int, extremes: Extremes | None = None):
    """The body of a kernel: an int32 mask of the ``k`` largest among the first ``n`` of every row; see ``search``."""
    index = lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    # The padding of a row sorts after everything, also after equals.
    keys = jnp.where(index < n, sortable(scores), LOWEST)

    def count(mask):
        # Float32 adds whole numbers this small exactly, and every reduction takes it.
        return jnp.sum(jnp.where(mask, 1.0, 0.0), axis=1, keepdims=True)

    zero = jnp.zeros((scores.shape[0], 1), jnp.int32)
    found = search(keys, index, zero, count, k.astype(jnp.float32), n, early=True, extremes=extremes)
    return found.astype(jnp.int32)


def search(
    keys, index, zero, count, k, n: int, *, early: bool, extremes: Extremes | None = None, loop: Loop = lax.while_loop
):
    """Marks the ``k`` largest keys of every row, and among equals those with the smallest index.

    Args:
        keys: int32, rows first.
        index: int32 like ``keys``, from 0 to n - 1; what is beyond has the key ``LOWEST`` and is not chosen.
        zero: int32 zeros, one a row.
        count: how many of its row a mask like ``keys`` marks, like ``zero``.
        k: at most n, in the type of a count.
        n: keys of a row.
        early: stop as soon as all rows have found their threshold. Outside of a kernel a GPU would wait for the host to
            see that.
        extremes: returns the smallest and the largest of keys, like ``zero``; the search then interpolates between
            them, which needs ``early``. None: it bisects.
        loop: as ``lax.while_loop``; the interpolation runs in it.
    """
    steps = (None, None) if early else (32, (n + 1).bit_length())

    def excess(middle):
        return count(keys >= middle) - k

    if extremes is None:
        threshold = _bisect(zero + LOWEST, zero + HIGHEST, excess, steps[0])
    else:
        lowest, highest = extremes(jnp.where(index < n, keys, HIGHEST))[0], extremes(keys)[1]
        threshold = _interpolate(lowest, jnp.minimum(highest, HIGHEST - 1) + 1, excess, zero + n - k, zero - k, loop)
    above, equal = keys > threshold, keys == threshold

    def before(end):
        return above | (equal & (index < end))

    # Where no more than k keys reach the threshold, there is nothing left to search.
    start = jnp.where(count(keys >= threshold) > k, zero, n)
    return before(_bisect(start, zero + (n + 1), lambda end: k - count(before(end)), steps[1]))


def _bisect(low, high, excess, steps: int | None):
    """A value in [low, high) whose excess is 0, or else the largest whose excess is not negative.

    The excess is decreasing, and not negative for ``low``. ``low`` and ``high`` are int32 arrays. ``steps`` is the
    number of halvings; None: halve until every row is done.
    """

    def halve(bounds):
        low, high = bounds
        # The mean of two integers, without overflow.
        middle = (low & high) + ((low ^ high) >> 1)
        over = excess(middle)
        low, high = jnp.where(over >= 0, middle, low), jnp.where(over >= 0, high, middle)
        return low, jnp.where(over == 0, low + 1, high)

    if steps is None:
        # Triton has no ``any``, so this is a sum of floats.
        return lax.while_loop(lambda b: jnp.sum(jnp.where(b[0] + 1 < b[1], 1.0, 0.0)) > 0, halve, (low, high))[0]
    return lax.fori_loop(0, steps, lambda _, bounds: halve(bounds), (low, high))[0]


def _interpolate(low, high, excess, over_low, over_high, loop):
    """``_bisect`` with guesses by the Illinois variant of regula falsi on the scores.

    A bound that stays for a second time gets half the weight, so that it does not stay for long.

    Args:
        low: as ``_bisect`` takes it.
        high: as ``_bisect`` takes it.
        excess: decreasing; not negative at ``low``.
        over_low: the excess at ``low``.
        over_high: the excess at ``high``, below zero.
        loop: see ``search``.
    """

    def guess(state):
        low, high, over_low, over_high, side, step = state
        left, right = score(low), score(high)
        between = sortable(left + (right - left) * (over_low / (over_low - over_high)))
        # Every eighth guess is the middle. The clip keeps the others between the bounds, also after an overflow.
        middle = jnp.where(step == 7, (low & high) + ((low ^ high) >> 1), jnp.clip(between, low + 1, high - 1))
        over = excess(middle)
        reached, open_ = over >= 0, low + 1 < high
        # Arithmetic on int32, because a choice between two numbers of Python has 64 bits under jax_enable_x64.
        new_side = 2 * reached.astype(jnp.int32) - 1
        again = side == new_side
        over = over.astype(jnp.float32)
        over_low, over_high = (
            jnp.where(reached, over, jnp.where(again, 0.5 * over_low, over_low)),
            jnp.where(reached, jnp.where(again, 0.5 * over_high, over_high), over),
        )
        low, high = jnp.where(reached & open_, middle, low), jnp.where(reached | ~open_, high, middle)
        return (
            low,
            jnp.where(over == 0, low + 1, high),
            over_low,
            over_high,
            new_side,
            jnp.where(step == 7, 0, step + 1),
        )

    def is_open(state):
        return jnp.sum(jnp.where(state[0] + 1 < state[1], 1.0, 0.0)) > 0

    over_low, over_high = (over.astype(jnp.float32) for over in (over_low, over_high))
    # If all scores are asked for, the lowest bound is the threshold.
    high = jnp.where(over_low == 0, low + 1, high)
    zero = low - low
    return loop(is_open, guess, (low, high, over_low, over_high, zero, zero))[0]
