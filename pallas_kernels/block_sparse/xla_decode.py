"""Products of few rows through plain XLA operations, written for CPUs: loops over the list of kept blocks.

Up to 16 rows a product is bound by the bytes of ``w``, so these loops read only the kept blocks. Two facts decide how
fast they are:

- XLA copies a slice before a dot, so a block would be read, written and read again. A sum of products of slices is one
  fused loop, which reads the weight in place: 1.6 to 2 times as fast for one row, on one core with a quarter of the
  blocks of 128 x 128 kept. With several rows the dot is faster in spite of the copy.
- One core gets far more bandwidth from several places in turn than from one long read. So a block is cut into
  ``STREAMS`` parts of consecutive rows, and each pass of the loop takes a piece of every part: 8 parts are 1.1 to 1.8
  times as fast as 4, and 16 are within 10% of 8.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.layout import block_shape
from pallas_kernels.mesh_axes import zeros
from pallas_kernels.sizes import at_most

STREAMS = 8
STREAMED_ROWS = 4
"""The fused loop serves up to this many rows. At 4 rows it is 4 to 10% faster than copy and dot for 4096 x 16384, and
17 to 34% slower for 1536 x 6144, where less has to come from memory. At 8 rows it is slower for both."""


def forward(x, w, gates):
    """y [b, N] in the dtype of ``x``; see ``reference.forward``."""
    product = _streamed_blocks if at_most(x.shape[0], STREAMED_ROWS) else _dots
    return product(x.astype(jnp.float32), w, gates.astype(jnp.float32)).astype(x.dtype)


def input_gradients(x, w, gates, dy):
    """dx [b, K] in the dtype of ``x`` and dgates [b, R, C] in float32; see ``reference.input_gradients``."""
    shape = block_shape(w, gates)
    dtype, x, dy = x.dtype, x.astype(jnp.float32), dy.astype(jnp.float32)

    def block(c, r, carry):
        dx, dgates = carry
        q = lax.dot_general(columns(dy, c, shape[1]), _block(w, r, c, shape), (((1,), (1,)), ((), ())))
        dgate = (columns(x, r, shape[0]) * q).sum(-1)[:, None, None]
        return _add_columns(dx, q * _gate(gates, r, c), r), lax.dynamic_update_slice(dgates, dgate, (0, r, c))

    walk = _walk(w, gates)
    init = zeros(x.shape, x), zeros(gates.shape, x)
    dx, dgates = lax.fori_loop(0, gates.shape[2], lambda c, carry: walk(c, block, carry), init)
    return dx.astype(dtype), dgates


def _streamed_blocks(x, w, gates):
    rows, num_r, num_c = gates.shape
    bk, bn = block_shape(w, gates)
    streams = next(number for number in range(STREAMS, 0, -1) if bk % number == 0)
    length = bk // streams
    x = x.reshape(rows, num_r, streams, length)
    block_major = w.ndim == 4
    w = w.reshape((num_c, num_r, streams, length, bn) if block_major else (num_r, streams, length, num_c, bn))

    def stream(r, c, j):
        if block_major:
            part = lax.dynamic_slice(sliceable(w), (c, r, j, 0, 0), (1, 1, 1, length, bn))
        else:
            part = lax.dynamic_slice(sliceable(w), (r, j, 0, c, 0), (1, 1, length, 1, bn))
        return widen(part.reshape(1, length, bn))

    def block(c, r, sums):
        scaled = lax.dynamic_slice(x, (0, r, 0, 0), (rows, 1, streams, length))[:, 0]
        scaled *= _gate(gates, r, c)[:, :, None]
        return sums + functools.reduce(jnp.add, (scaled[:, j, :, None] * stream(r, c, j) for j in range(streams)))

    return _by_column(w, gates, block, zeros((rows, length, bn), x), lambda sums: sums.sum(1))


def _dots(x, w, gates):
    shape = block_shape(w, gates)

    def block(c, r, sums):
        return sums + jnp.dot(columns(x, r, shape[0]), _block(w, r, c, shape)) * _gate(gates, r, c)

    return _by_column(w, gates, block, zeros((x.shape[0], shape[1]), x), lambda sums: sums)


def _by_column(w, gates, block, init, finish):
    """y [b, N]: for each column of blocks, ``block(c, r, sums)`` over those kept, from ``init``, then ``finish``."""
    rows, _, num_c = gates.shape
    walk = _walk(w, gates)
    result = jax.eval_shape(finish, init)

    def column(c, y):
        return lax.dynamic_update_slice(y, finish(walk(c, block, init))[None], (c, 0, 0))

    y = lax.fori_loop(0, num_c, column, zeros((num_c, *result.shape), init))
    return y.swapaxes(0, 1).reshape(rows, num_c * result.shape[1])


def _walk(w, gates):
    """``walk(c, block, carry)``: ``carry = block(c, r, carry)`` for the blocks (r, c) of a column that some row keeps.

    The rows r come from a table with a line for each column. A kept row's place in its line is the running count of
    kept rows. Comparing places fills the table, without a sort or a scatter.

    XLA moves an operation on the whole weight out of the loop, and copies the weight there. For bfloat16 that operation
    is the step to its bits (see ``sliceable``). XLA moves nothing out of a branch, so for bfloat16 the loop body is a
    branch that is always taken.
    """
    num_r = gates.shape[1]
    kept = (gates != 0).any(0).T
    counts = jnp.dot(kept.astype(jnp.float32), jnp.triu(jnp.ones((num_r, num_r), jnp.float32))).astype(jnp.int32)
    r = jnp.arange(num_r, dtype=jnp.int32)
    here = kept[:, :, None] & (counts[:, :, None] == r[None, None, :] + 1)
    table = jnp.where(here, r[None, :, None], 0).sum(1)

    def walk(c, block, carry):
        def body(i, carry):
            r = table[c, i]
            if w.dtype != jnp.bfloat16:
                return block(c, r, carry)
            return lax.cond(r >= 0, lambda carry: block(c, r, carry), lambda carry: carry, carry)

        return lax.fori_loop(0, counts[c, -1], body, carry)

    return walk


def sliceable(w):
    """A bfloat16 weight as its bits, uint16; any other weight as it is. Call it where the slice is taken.

    XLA cannot slice bfloat16 on a CPU: it copies the whole weight to float32 outside of the loop and slices that.
    """
    return lax.bitcast_convert_type(w, jnp.uint16) if w.dtype == jnp.bfloat16 else w


def widen(part):
    """A part of the weight, as ``sliceable`` gives it, in float32."""
    if part.dtype != jnp.uint16:
        return part.astype(jnp.float32)
    return lax.bitcast_convert_type(part.astype(jnp.uint32) << 16, jnp.float32)


def _block(w, r, c, shape):
    w = sliceable(w)
    if w.ndim == 4:
        return widen(lax.dynamic_slice(w, (c, r, 0, 0), (1, 1, *shape)).reshape(shape))
    return widen(lax.dynamic_slice(w, (r * shape[0], c * shape[1]), shape))


def _gate(gates, r, c):
    return lax.dynamic_slice(gates, (0, r, c), (gates.shape[0], 1, 1))[:, 0].astype(jnp.float32)


def columns(array, block, width):
    """The columns of a block."""
    return lax.dynamic_slice(array, (0, block * width), (array.shape[0], width))


def _add_columns(array, part, block):
    at = (0, block * part.shape[1])
    return lax.dynamic_update_slice(array, lax.dynamic_slice(array, at, part.shape) + part, at)
