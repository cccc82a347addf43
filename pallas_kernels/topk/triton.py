"""``search`` as one Pallas kernel for NVIDIA GPUs (Triton).

A program holds all scores of its row in registers. It reads them once and writes one mask. So there is one launch
between scores and gates, and nothing waits for the host.
"""

import functools

import jax.numpy as jnp
from jax import lax

from pallas_kernels.mesh_axes import result
from pallas_kernels.pallas_triton import pl, pltriton
from pallas_kernels.topk.search import search_in_kernel


def largest(scores, k, *, interpret=False):
    """Marks the ``k`` largest of every row of ``scores`` [b, n]; see ``search.largest``."""
    rows, n = scores.shape
    width = max(pl.next_power_of_2(n), 32)
    # The width is a power of two. Past the end of a row ``inside`` is false, and nothing is read or written.
    block = pl.BlockSpec((1, width), lambda i: (i, 0))
    mask = pl.pallas_call(
        functools.partial(_kernel, n=n),
        grid=(rows,),
        in_specs=[pl.BlockSpec((1,), lambda i: (0,)), block],
        out_specs=block,
        out_shape=result(scores.shape, jnp.int32, scores),
        compiler_params=pltriton.CompilerParams(num_warps=min(16, max(1, width // 256)), num_stages=1),
        interpret=interpret,
        name="largest_kernel",
    )(k.reshape(1), scores.astype(jnp.float32))
    return mask != 0


def _kernel(k_ref, scores_ref, mask_ref, *, n):
    inside = lax.broadcasted_iota(jnp.int32, scores_ref.shape, 1) < n
    scores = pltriton.load(scores_ref, mask=inside, other=0.0)

    def extremes(keys):
        return keys.min(1, keepdims=True), keys.max(1, keepdims=True)

    pltriton.store(mask_ref, search_in_kernel(scores, k_ref[0], n, extremes), mask=inside)
