"""Portable path through plain XLA operations, written for CPUs.

Two regimes. Up to ``DECODE_ROWS`` rows a product is bound by the bytes of ``w``: loops over the list of kept blocks
read those and no others. With more rows nearly every block is kept by some row, so all are computed and the gate of
each row is applied behind the dot.
"""

import jax.numpy as jnp
from jax import lax

from pallas_kernels.layout import from_block_major

DECODE_ROWS = 16


def forward(x, w, gates):
    if x.shape[0] <= DECODE_ROWS:
        return _decode_forward(x, w, gates)
    return _batched_forward(x, w, gates)


def input_gradients(x, w, gates, dy):
    if x.shape[0] <= DECODE_ROWS:
        return _decode_input_gradients(x, w, gates, dy)
    return _batched_input_gradients(x, w, gates, dy)


def weight_gradient(x, w, gates, dy):
    """Reads no weight at all: only the layout and dtype of ``w`` are taken."""
    rows, r, c = gates.shape
    x = x.reshape(rows, r, -1)
    bn = dy.shape[-1] // c

    def row_block(i):
        scaled = dy.reshape(rows, c, bn) * gates[:, i, :, None].astype(dy.dtype)
        return jnp.einsum("bk,bn->kn", x[:, i], scaled.reshape(rows, c * bn), preferred_element_type=jnp.float32)

    dw = jnp.concatenate([row_block(i).astype(w.dtype) for i in range(r)])
    if w.ndim == 4:
        dw = dw.reshape(r, -1, c, bn).transpose(2, 0, 1, 3)
    return dw


# Decode: loops over the kept blocks.


def _kept_list(gates):
    """Flat indices c * R + r of the blocks that some row keeps, column by column, and how many there are."""
    _, r, c = gates.shape
    kept = (gates != 0).any(0).T.reshape(-1)
    order = jnp.argsort(~kept, stable=True)
    return order.astype(jnp.int32), kept.sum(dtype=jnp.int32)


def _block(w, r, c, shape):
    if w.ndim == 4:
        return lax.dynamic_slice(w, (c, r, 0, 0), (1, 1, *shape)).reshape(shape)
    return lax.dynamic_slice(w, (r * shape[0], c * shape[1]), shape)


def _decode_forward(x, w, gates):
    rows, num_r, num_c = gates.shape
    shape = (w.shape[2], w.shape[3]) if w.ndim == 4 else (w.shape[0] // num_r, w.shape[1] // num_c)
    order, count = _kept_list(gates)

    def body(i, y):
        c, r = lax.div(order[i], num_r), lax.rem(order[i], num_r)
        x_block = lax.dynamic_slice(x, (0, r * shape[0]), (rows, shape[0]))
        gate = lax.dynamic_slice(gates, (0, r, c), (rows, 1, 1))[:, 0].astype(jnp.float32)
        part = jnp.dot(x_block, _block(w, r, c, shape), preferred_element_type=jnp.float32) * gate
        at = (0, c * shape[1])
        return lax.dynamic_update_slice(y, lax.dynamic_slice(y, at, part.shape) + part, at)

    y = lax.fori_loop(0, count, body, jnp.zeros((rows, num_c * shape[1]), jnp.float32))
    return y.astype(x.dtype)


def _decode_input_gradients(x, w, gates, dy):
    rows, num_r, num_c = gates.shape
    shape = (w.shape[2], w.shape[3]) if w.ndim == 4 else (w.shape[0] // num_r, w.shape[1] // num_c)
    order, count = _kept_list(gates)

    def body(i, carry):
        dx, dgates = carry
        c, r = lax.div(order[i], num_r), lax.rem(order[i], num_r)
        x_block = lax.dynamic_slice(x, (0, r * shape[0]), (rows, shape[0])).astype(jnp.float32)
        dy_block = lax.dynamic_slice(dy, (0, c * shape[1]), (rows, shape[1]))
        gate = lax.dynamic_slice(gates, (0, r, c), (rows, 1, 1))[:, 0].astype(jnp.float32)
        q = lax.dot_general(
            dy_block, _block(w, r, c, shape), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
        )
        at = (0, r * shape[0])
        dx = lax.dynamic_update_slice(dx, lax.dynamic_slice(dx, at, q.shape) + q * gate, at)
        dgate = (x_block * q).sum(-1)[:, None, None]
        return dx, lax.dynamic_update_slice(dgates, dgate, (0, r, c))

    init = jnp.zeros(x.shape, jnp.float32), jnp.zeros(gates.shape, jnp.float32)
    dx, dgates = lax.fori_loop(0, count, body, init)
    return dx.astype(x.dtype), jnp.where(gates != 0, dgates, 0).astype(gates.dtype)


# Batched: every block, gate behind the dot.


def _batched_forward(x, w, gates):
    rows, num_r, num_c = gates.shape
    if w.ndim == 4:
        w = from_block_major(w)
    bn = w.shape[1] // num_c
    x = x.reshape(rows, num_r, -1)
    w = w.reshape(num_r, -1, w.shape[1])
    y = jnp.zeros((rows, num_c, bn), jnp.float32)
    for i in range(num_r):
        part = jnp.dot(x[:, i], w[i], preferred_element_type=jnp.float32)
        y += part.reshape(rows, num_c, bn) * gates[:, i, :, None].astype(jnp.float32)
    return y.reshape(rows, -1).astype(x.dtype)


def _batched_input_gradients(x, w, gates, dy):
    rows, num_r, num_c = gates.shape
    if w.ndim == 4:
        w = from_block_major(w)
    bk, bn = w.shape[0] // num_r, w.shape[1] // num_c
    dx = jnp.zeros((rows, num_r, bk), jnp.float32)
    x = x.reshape(rows, num_r, bk).astype(jnp.float32)
    dgates = []
    for j in range(num_c):
        at = slice(j * bn, (j + 1) * bn)
        q = lax.dot_general(dy[:, at], w[:, at], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        q = q.reshape(rows, num_r, bk)
        dx += q * gates[:, :, j, None].astype(jnp.float32)
        dgates.append((x * q).sum(-1))
    dgates = jnp.stack(dgates, -1)
    return dx.reshape(rows, -1).astype(dy.dtype), jnp.where(gates != 0, dgates, 0).astype(gates.dtype)
