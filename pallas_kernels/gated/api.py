"""From scores to the gated product as one operation, for few rows.

On an NVIDIA GPU a product of few rows is so short that launches count, so there one kernel does all that lies between
scores and product. Everywhere else, and in every derivative, the operation is the three steps of ``reference``.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from pallas_kernels.gated import reference
from pallas_kernels.platforms import kernel_on


def fuses(x, w, grid: tuple[int, int], implementation: str | None) -> bool:
    """Whether ``gated_matmul`` takes ``x`` [b, K] and ``w`` with (R, C) = ``grid``, and has something to gain."""
    if implementation not in (None, "triton"):
        return False
    try:
        from pallas_kernels.gated import triton_gates
    except ImportError:
        # This jax has no such compiler.
        return False
    return triton_gates.takes(x, w, jax.ShapeDtypeStruct((x.shape[0], *grid), "float32"))


# Without this jit, a call outside of any other jit would compile every time.
@functools.partial(jax.jit, static_argnames=("grid", "activation", "normalization", "implementation"))
def gated_matmul(
    x: Float[Array, "b K"],
    w: Float[Array, "..."],
    scores: Float[Array, "b n"],
    bias: Float[Array, " n"],
    k: Int32[Array, ""],
    *,
    grid: tuple[int, int],
    activation: str,
    normalization: str,
    implementation: str | None = None,
) -> tuple[Float[Array, "b N"], Float[Array, "b R C"]]:
    """(y, gates) of an input and the scores of its blocks; on an NVIDIA GPU two kernels compute them.

    Derivatives, and calls under ``vmap``, take the three steps.

    Args:
        x: as ``block_sparse_matmul`` takes it, b being at most 16; ``fuses`` says whether it fits.
        w: as ``block_sparse_matmul`` takes it.
        scores: without the bias; n counts the blocks row by row of the grid.
        bias: added to the scores of every row.
        k: number of blocks kept.
        grid: (R, C), with n = R * C.
        activation: as ``gate_values`` takes it.
        normalization: as ``gate_values`` takes it.
        implementation: None or "triton", for the product and the choice of blocks.
    """
    from pallas_kernels.gated import triton_gates

    n = w.shape[1] if w.ndim == 2 else w.shape[0] * w.shape[3]
    out = jax.ShapeDtypeStruct((x.shape[0], n), x.dtype), jax.ShapeDtypeStruct((x.shape[0], *grid), jnp.float32)
    options = {"grid": grid, "activation": activation, "normalization": normalization}
    steps = functools.partial(reference.gated_matmul, **options, implementation=implementation)
    fused = kernel_on("cuda", functools.partial(triton_gates.gated_matmul, **options), out)

    @jax.custom_batching.custom_vmap
    def by_platform(*operands):
        return lax.platform_dependent(*operands, cuda=fused, default=steps)

    @by_platform.def_vmap
    def _(size, batched, *operands):
        del size
        return jax.vmap(steps, [0 if is_mapped else None for is_mapped in batched])(*operands), (True, True)

    @jax.custom_vjp
    def product(*operands):
        return by_platform(*operands)

    product.defvjp(lambda *operands: jax.vjp(steps, *operands), lambda pull, cotangents: pull(cotangents))
    return product(x, w, scores, bias, k)
