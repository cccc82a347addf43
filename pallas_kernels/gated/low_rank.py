"""Scores of a low-rank gate, x @ down @ up.

For one row an NVIDIA GPU reads only a megabyte or two, so launches count: there two kernels take the place of XLA's
three or more. Elsewhere the scores are two dense products.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.dense import matmul
from pallas_kernels.mesh_axes import alike
from pallas_kernels.platforms import kernel_on


def low_rank(x: Float[Array, "*b K"], down: Float[Array, "K r"], up: Float[Array, "r n"]) -> Float[Array, "*b n"]:
    """x @ down @ up in float32, all three in one dtype; x @ down is rounded to that dtype before the second product."""
    rows = math.prod(x.shape[:-1])
    flat, down, up = alike(x.reshape(rows, x.shape[-1]), down, up)
    try:
        from pallas_kernels.gated import triton_low_rank

        takes = triton_low_rank.takes(flat, down, up)
    except ImportError:
        # This jax has no such compiler.
        takes = False
    y = _by_platform(flat, down, up) if takes else _plain(flat, down, up)
    return y.reshape(*x.shape[:-1], up.shape[1])


def _plain(x, down, up):
    return matmul(matmul(x, down).astype(x.dtype), up)


@jax.custom_vjp
def _by_platform(x, down, up):
    return _forward(x, down, up)


@jax.custom_batching.custom_vmap
def _forward(x, down, up):
    from pallas_kernels.gated import triton_low_rank

    out = jax.ShapeDtypeStruct((x.shape[0], up.shape[1]), jnp.float32)
    return lax.platform_dependent(x, down, up, cuda=kernel_on("cuda", triton_low_rank.low_rank, out), default=_plain)


@_forward.def_vmap
def _(size, batched, *operands):
    del size
    return jax.vmap(_plain, [0 if is_mapped else None for is_mapped in batched])(*operands), True


_by_platform.defvjp(lambda *operands: jax.vjp(_plain, *operands), lambda pull, dy: pull(dy))
