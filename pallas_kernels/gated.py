"""From scores to the gated product, for few rows: where one platform does better than gates first, product second.

On an NVIDIA GPU a product of few rows is so short that launches count: between scores and product there is one kernel.
Everywhere else, and in every derivative, it is the caller's own sequence of operations.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from pallas_kernels.platforms import kernel_on

Product = Callable[..., tuple[Float[Array, "b N"], Float[Array, "b R C"]]]


def fuses(x, w, grid: tuple[int, int], implementation: str | None) -> bool:
    """Whether ``gated_matmul`` takes ``x`` [b, K] and ``w`` with (R, C) = ``grid``, and has something to gain."""
    if implementation not in (None, "triton"):
        return False
    try:
        from pallas_kernels import triton_gates
    except ImportError:
        # This jax has no such compiler.
        return False
    return triton_gates.takes(x, w, jax.ShapeDtypeStruct((x.shape[0], *grid), "float32"))


def gated_matmul(
    portable: Product,
    scale: Callable[..., Any],
    grid: tuple[int, int],
    x: Float[Array, "b K"],
    w: Float[Array, "..."],
    scores: Float[Array, "b n"],
    bias: Float[Array, " n"],
    k: Int32[Array, ""],
) -> tuple[Float[Array, "b N"], Float[Array, "b R C"]]:
    """(y, gates) of ``portable(x, w, scores, bias, k)``, on an NVIDIA GPU by two kernels in its place.

    The gates of a row are ``scale`` of the ``k`` largest of ``scores + bias``, y is ``block_sparse_matmul`` of them.
    Derivatives, and products under ``vmap``, are those of ``portable``.

    Args:
        portable: the same by other operations.
        scale: ``scale(scores, kept, num_blocks, total=, largest=)`` gives the gates of one matrix: zero where
            ``kept`` is not set. The arrays may have any two dimensions, and more places than the ``num_blocks`` that
            count; ``total`` and ``largest`` are the sum and the maximum over all places.
        grid: (R, C), of which n is the product.
        x, w: as ``block_sparse_matmul`` takes them, b being at most 16 (``fuses`` says whether they fit).
        scores, bias: what the scores are the sum of, row by row of the grid.
        k: blocks kept.
    """
    from pallas_kernels import triton_gates

    n = w.shape[1] if w.ndim == 2 else w.shape[0] * w.shape[3]
    out = jax.ShapeDtypeStruct((x.shape[0], n), x.dtype), jax.ShapeDtypeStruct((x.shape[0], *grid), jnp.float32)
    fused = kernel_on("cuda", functools.partial(triton_gates.gated_matmul, grid=grid, scale=scale), out)

    @jax.custom_batching.custom_vmap
    def by_platform(*operands):
        return lax.platform_dependent(*operands, cuda=fused, default=portable)

    @by_platform.def_vmap
    def _(size, batched, *operands):
        del size
        return jax.vmap(portable, [0 if is_mapped else None for is_mapped in batched])(*operands), (True, True)

    @jax.custom_vjp
    def product(*operands):
        return by_platform(*operands)

    product.defvjp(lambda *operands: jax.vjp(portable, *operands), lambda pull, cotangents: pull(cotangents))
    return product(x, w, scores, bias, k)
