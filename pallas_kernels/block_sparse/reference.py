"""The oracle: the block-sparse product and its gradients as dense einsums that touch every block.

It skips nothing, and its temporaries are large. The tests compare every other implementation with this one.
Sums are accumulated in float32 and cast once.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.layout import from_block_major, to_block_major


def _blocks(w, gates):
    """The weight as float32 [C, R, K/R, N/C], from either layout."""
    *_, r, c = gates.shape
    if w.ndim == 2:
        w = to_block_major(w, (w.shape[0] // r, w.shape[1] // c))
    return w.astype(jnp.float32)


def forward(x: Float[Array, "b K"], w: Float[Array, "..."], gates: Float[Array, "b R C"]) -> Float[Array, "b N"]:
    """y[b, c] = sum over r of gates[b, r, c] * x[b, r] @ w[r, c]."""
    rows, r = x.shape[0], gates.shape[1]
    x_blocks = x.reshape(rows, r, x.shape[1] // r).astype(jnp.float32)
    y = jnp.einsum("brc,brk,crkn->bcn", gates.astype(jnp.float32), x_blocks, _blocks(w, gates), precision="highest")
    return y.reshape(rows, y.shape[1] * y.shape[2]).astype(x.dtype)


def input_gradients(
    x: Float[Array, "b K"], w: Float[Array, "..."], gates: Float[Array, "b R C"], dy: Float[Array, "b N"]
) -> tuple[Float[Array, "b K"], Float[Array, "b R C"]]:
    """dx[b, r] = sum over c of gates[b, r, c] * q and dgates[b, r, c] = <x[b, r], q>, q = dy[b, c] @ w[r, c]^T."""
    rows, r, c = gates.shape
    x_blocks = x.reshape(rows, r, x.shape[1] // r).astype(jnp.float32)
    dy_blocks = dy.reshape(rows, c, dy.shape[1] // c).astype(jnp.float32)
    q = jnp.einsum("bcn,crkn->brck", dy_blocks, _blocks(w, gates), precision="highest")
    dx = jnp.einsum("brc,brck->brk", gates.astype(jnp.float32), q, precision="highest")
    dgates = jnp.einsum("brk,brck->brc", x_blocks, q, precision="highest")
    return dx.reshape(x.shape).astype(x.dtype), jnp.where(gates != 0, dgates, 0).astype(gates.dtype)


def weight_gradient(
    x: Float[Array, "b K"], w: Float[Array, "..."], gates: Float[Array, "b R C"], dy: Float[Array, "b N"]
) -> Float[Array, "..."]:
    """dw[r, c] = sum over b of gates[b, r, c] * x[b, r]^T dy[b, c], in the layout and dtype of ``w``."""
    rows, r, c = gates.shape
    x_blocks = x.reshape(rows, r, x.shape[1] // r).astype(jnp.float32)
    dy_blocks = dy.reshape(rows, c, dy.shape[1] // c).astype(jnp.float32)
    dw = jnp.einsum("brc,brk,bcn->crkn", gates.astype(jnp.float32), x_blocks, dy_blocks, precision="highest")
    return (from_block_major(dw) if w.ndim == 2 else dw).astype(w.dtype)
