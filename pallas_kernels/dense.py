"""The dense product and the gradient of its weight: XLA's own, but for three cases on a CPU.

- For few rows of bfloat16 XLA's product is many times slower than in float32. The time that skipping blocks saves would
  be lost again in a gate's scores and in the softmax.
- With one thread and a large float32 weight, XLA's product takes 1.1 to 1.5 times as long for one row, and twice as
  long for two to four, as a loop that reads several rows of the weight in turn; NumPy's BLAS is about as fast as the
  loop. With two threads XLA's is as fast as the loop for one row only.
- Where a product reads its left operand transposed, as in the gradient of a weight, it takes up to twice as long as if
  the operand had been transposed before.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.block_sparse.xla_decode import STREAMED_ROWS, STREAMS, sliceable, widen
from pallas_kernels.mesh_axes import alike, zeros
from pallas_kernels.sizes import at_most, is_known
from pallas_kernels.threads import cores

LARGE = {"bfloat16": 2**21, "float32": 2**24}
"""Bytes of a large ``w``: for a smaller one XLA's product is about as fast for one row, and faster for four."""


def matmul(x, w):
    """x @ w [..., N] in float32, summed in float32.

    Args:
        x: [..., K], float32 or bfloat16.
        w: [K, N] in the dtype of ``x``.
    """
    if not _is_faster_streamed(math.prod(x.shape[:-1]), w):
        return _plain(x, w)
    return lax.platform_dependent(x, w, cpu=_streamed, default=_plain)


def _is_faster_streamed(rows, w):
    """Whether ``_streamed`` is the faster product on a CPU."""
    if w.dtype.name not in LARGE or rows == 0 or not at_most(rows, STREAMED_ROWS) or not is_known(*w.shape):
        return False
    if w.dtype == jnp.float32 and not (is_known(rows) and cores() <= min(rows, 2)):
        return False
    return w.nbytes >= LARGE[w.dtype.name]


def product(x, w):
    """``matmul`` in the dtype of ``x``, with ``weight_gradient`` for ``w``; it has no forward-mode derivative."""
    return _product(*alike(x, w))


@jax.custom_vjp
def _product(x, w):
    return matmul(x, w).astype(x.dtype)


def _product_bwd(operands, dy):
    x, w = operands
    return _plain(dy, w.T).astype(x.dtype), weight_gradient(x, dy).astype(w.dtype)


_product.defvjp(lambda x, w: (_product(x, w), (x, w)), _product_bwd)


def weight_gradient(x, dy):
    """x^T @ dy [K, N] in float32, summed over all leading dimensions in float32.

    Args:
        x: [..., K], float32 or bfloat16.
        dy: [..., N] in the dtype of ``x``.
    """
    rows = (array.reshape(-1, array.shape[-1]) for array in alike(x, dy))
    return lax.platform_dependent(*rows, cpu=_transposed_before, default=lambda x, dy: _plain(x.T, dy))


def _transposed_before(x, dy):
    # Without the barrier XLA would make the transposition a part of the product.
    return _plain(lax.optimization_barrier(x.T), dy)


def _plain(x, w):
    return jnp.matmul(x, w, preferred_element_type=jnp.float32)


@jax.custom_jvp
def _streamed(x, w):
    """Reads ``STREAMS`` rows of ``w`` in turn and in place; see ``block_sparse.xla_decode``."""
    x, w = alike(x, w)
    k, n = w.shape
    scales = x.astype(jnp.float32).reshape(-1, k)

    def row(i):
        return lax.dynamic_slice_in_dim(scales, i, 1, axis=1) * widen(lax.dynamic_slice_in_dim(sliceable(w), i, 1))

    def rows(first, number):
        return functools.reduce(jnp.add, (row(first + j) for j in range(number)))

    def step(i, y):
        return y + rows(i * STREAMS, STREAMS)

    def body(i, y):
        # A branch, because XLA would otherwise copy the whole weight outside of the loop.
        return lax.cond(i >= 0, functools.partial(step, i), lambda y: y, y)

    y = lax.fori_loop(0, k // STREAMS, body, zeros((scales.shape[0], n), x))
    if k % STREAMS:
        y += rows(k - k % STREAMS, k % STREAMS)
    return y.reshape(*x.shape[:-1], n)


@_streamed.defjvp
def _(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    return _streamed(x, w), _plain(dx, w) + _plain(x, dw)
