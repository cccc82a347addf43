"""Portable path through plain XLA operations, written for CPUs.

There are two regimes. Up to ``FEW_ROWS`` rows a product is bound by the bytes of ``w``, and ``xla_decode`` reads
only the kept blocks, one after the other. Where blocks are small and many are kept, that is slower than to compute all
of them (``pays_to_skip``). With more rows, some row keeps nearly every block. Then all blocks are computed, in a loop
over columns or rows of blocks. A gate scales an operand of a product or its result, which is used while it is in cache:

    forward           for each column block c:  y[c] = (gates[:, :, c] * x) @ w[:, c]
    dx and dgates     for each column block c:  q = dy[c] @ w[:, c]^T;  dx += gates[:, :, c] * q;  dgates[c] = <x, q>
    dw                for each row block r:     dw[r] = x[r]^T @ (gates[:, r] * dy)

Forward and backward are three products in all, as many as a dense layer has. A loop takes its part of the weight as it
is: XLA would arrange the weight anew for each step of a recurrence around the loop.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax

from pallas_kernels.block_sparse import xla_decode
from pallas_kernels.block_sparse.xla_decode import STREAMED_ROWS, columns
from pallas_kernels.layout import block_shape, to_block_major
from pallas_kernels.mesh_axes import zeros
from pallas_kernels.sizes import FEW_ROWS, at_most
from pallas_kernels.threads import cores

SMALL_BLOCK = 64 * 64 * 4
"""Bytes of a block beyond which a loop over the kept blocks reads them as fast as a dense product does."""
BLOCK_COST = 12 * 1024
"""Bytes that a core reads from its cache while such a loop goes on to its next block."""


def pays_to_skip(share, shape: tuple[int, int], dtype):
    """Whether for few rows a loop over the kept blocks is faster than a dense product, which uses all cores.

    The constants are about right for one core of an AMD EPYC; the loops of an Intel Xeon are faster. With two cores the
    dense product of a weight that fits a cache was up to 1.6 times as fast. More cores were not tried.

    Args:
        share: of the blocks, those that some row keeps; a number or a traced scalar.
        shape: of a block.
        dtype: of the weight. XLA's own product of bfloat16 is slow.
    """
    block_bytes = math.prod(shape) * 4
    if dtype != jnp.float32 or not at_most(block_bytes, SMALL_BLOCK):
        return True
    return share * (block_bytes + BLOCK_COST) * (1.6 if cores() > 1 else 1.0) < block_bytes


def forward(x, w, gates):
    """y [b, N] in the dtype of ``x``; see ``reference.forward``."""
    rows = x.shape[0]
    if not at_most(rows, FEW_ROWS):
        return _by_column(x, w, gates)
    # A block-major weight was laid out for the loops.
    share = (gates != 0).any(0).mean(dtype=jnp.float32)
    pays = True if w.ndim == 4 else pays_to_skip(share, block_shape(w, gates), w.dtype)
    if pays is True:
        return xla_decode.forward(x, w, gates)
    all_blocks = _partial_sums if at_most(rows, STREAMED_ROWS) else _by_row_block
    return lax.cond(pays, lambda: xla_decode.forward(x, w, gates), lambda: all_blocks(x, w, gates))


def input_gradients(x, w, gates, dy):
    """dx [b, K] and dgates [b, R, C]; see ``reference.input_gradients``."""
    if at_most(x.shape[0], FEW_ROWS):
        dx, dgates = xla_decode.input_gradients(x, w, gates, dy)
    else:
        dx, dgates = _input_gradients(x, w, gates, dy)
    return dx, jnp.where(gates != 0, dgates, 0).astype(gates.dtype)


def weight_gradient(x, w, gates, dy):
    """dw in the layout and dtype of ``w``, whose values are not read; see ``reference.weight_gradient``."""
    rows, num_r, num_c = gates.shape
    (k, n) = x.shape[1], dy.shape[1]
    # The gate is applied before the dot, in float32: rounding x or gate * dy to bfloat16 would lose a digit of dw.
    x_blocks = x.astype(jnp.float32).T.reshape(num_r, k // num_r, rows)
    dy = dy.reshape(rows, num_c, n // num_c).astype(jnp.float32)

    def row_block(_, step):
        x, gate = step
        return None, jnp.dot(x, (dy * gate[:, :, None]).reshape(rows, n)).astype(w.dtype)

    _, dw = lax.scan(row_block, None, (x_blocks, gates.astype(jnp.float32).swapaxes(0, 1)))
    dw = dw.reshape(k, n)
    return to_block_major(dw, w.shape[2:]) if w.ndim == 4 else dw


# Every block is computed.


def _dot_transposed(a, b):
    """a @ b^T."""
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)


def _by_column(x, w, gates):
    rows, num_r, num_c = gates.shape
    x_blocks = x.astype(jnp.float32).reshape(rows, num_r, x.shape[1] // num_r)

    def column(_, step):
        c, gate = step
        part = w[c].reshape(x.shape[1], -1) if w.ndim == 4 else columns(w, c, w.shape[1] // num_c)
        return None, jnp.dot((x_blocks * gate[:, :, None]).reshape(x.shape), part.astype(jnp.float32))

    _, y = lax.scan(column, None, (jnp.arange(num_c), gates.astype(jnp.float32).transpose(2, 0, 1)))
    return y.swapaxes(0, 1).reshape(rows, -1).astype(x.dtype)


def _scaled(part, gate):
    """The share of a row block in y [b, C, N/C]; NaN or infinity in a block that a row does not keep stays out."""
    return jnp.where(gate[:, :, None] != 0, part * gate[:, :, None], 0.0)


def _partial_sums(x, w, gates):
    rows, num_r, num_c = gates.shape
    gates = gates.astype(jnp.float32)
    x_blocks = x.reshape(rows, num_r, w.shape[0] // num_r).swapaxes(0, 1)
    parts = lax.dot_general(x_blocks, w.reshape(num_r, w.shape[0] // num_r, w.shape[1]), (((2,), (1,)), ((0,), (0,))))
    parts = parts.reshape(num_r, rows, num_c, w.shape[1] // num_c)
    # One fused loop; a sum over an axis would have what it adds up written to memory first.
    y = functools.reduce(jnp.add, (_scaled(parts[r], gates[:, r]) for r in range(num_r)))
    return y.reshape(rows, w.shape[1]).astype(x.dtype)


def _by_row_block(x, w, gates):
    rows, num_r, num_c = gates.shape
    k, n = w.shape

    def row_block(y, step):
        x, w, gate = step
        part = jnp.dot(x, w, preferred_element_type=jnp.float32).reshape(y.shape)
        return y + _scaled(part, gate), None

    steps = (
        x.reshape(rows, num_r, k // num_r).swapaxes(0, 1),
        w.reshape(num_r, k // num_r, n),
        gates.astype(jnp.float32).swapaxes(0, 1),
    )
    y, _ = lax.scan(row_block, zeros((rows, num_c, n // num_c), x), steps)
    return y.reshape(rows, n).astype(x.dtype)


def _input_gradients(x, w, gates, dy):
    rows, num_r, num_c = gates.shape
    gates = gates.astype(jnp.float32)
    x_blocks = x.reshape(rows, num_r, x.shape[1] // num_r).astype(jnp.float32)
    width = dy.shape[1] // num_c

    def column_block(c, carry):
        dx, dgates = carry
        column = w[c].reshape(x.shape[1], width) if w.ndim == 4 else columns(w, c, width)
        q = _dot_transposed(columns(dy, c, width), column).reshape(x_blocks.shape)
        dgate = (x_blocks * q).sum(-1)[None]
        dx += q * lax.dynamic_slice(gates, (0, 0, c), (rows, num_r, 1))
        return dx, lax.dynamic_update_slice(dgates, dgate, (c, 0, 0))

    init = zeros(x_blocks.shape, x), zeros((num_c, rows, num_r), x)
    dx, dgates = lax.fori_loop(0, num_c, column_block, init)
    return dx.reshape(x.shape).astype(x.dtype), dgates.transpose(1, 2, 0)
