"""The search of ``topk`` as one Pallas kernel, for TPUs (Mosaic) and NVIDIA GPUs (Triton): the same body for both.

A program holds all scores of its rows in registers or VMEM. It reads them once and writes one mask: between scores and
gates there is one launch, and nothing waits for the host.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as pltriton

from pallas_kernels.mesh_axes import result
from pallas_kernels.mosaic_tpu_tiles import LANES, pad_rows, round_up
from pallas_kernels.topk import LOWEST, search, sortable

MAX_SCORES = 32_768
"""Of one row: 64 a thread on a GPU."""
TILE_BYTES = 2**20
"""Scores of one program on a TPU."""


def largest_tpu(scores, k, *, interpret=False):
    """Marks the ``k`` largest of every row of ``scores`` [b, n]; see ``topk.largest``."""
    rows, n = scores.shape
    width = round_up(n, LANES)
    tile = min(round_up(rows, 8), max(8, TILE_BYTES // (4 * width) // 8 * 8))
    padded = jnp.pad(pad_rows(scores.astype(jnp.float32), round_up(rows, tile)), ((0, 0), (0, width - n)))
    block = pl.BlockSpec((tile, width), lambda i, *_: (i, 0))
    mask = pl.pallas_call(
        functools.partial(_tpu_kernel, n=n),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(padded.shape[0] // tile,), in_specs=[block], out_specs=block
        ),
        out_shape=result(padded.shape, jnp.int32, padded),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
    )(k.reshape(1), padded)
    return mask[:rows, :n] != 0


def largest_cuda(scores, k, *, interpret=False):
    """Marks the ``k`` largest of every row of ``scores`` [b, n]; see ``topk.largest``."""
    rows, n = scores.shape
    width = max(pl.next_power_of_2(n), 32)
    # A block as wide as a power of two: past the end of a row nothing is read or written, where ``inside`` is false.
    block = pl.BlockSpec((1, width), lambda i: (i, 0))
    mask = pl.pallas_call(
        functools.partial(_cuda_kernel, n=n),
        grid=(rows,),
        in_specs=[pl.BlockSpec((1,), lambda i: (0,)), block],
        out_specs=block,
        out_shape=result(scores.shape, jnp.int32, scores),
        compiler_params=pltriton.CompilerParams(num_warps=min(16, max(1, width // 256)), num_stages=1),
        interpret=interpret,
        name="largest_kernel",
    )(k.reshape(1), scores.astype(jnp.float32))
    return mask != 0


def _tpu_kernel(k_ref, scores_ref, mask_ref, *, n):
    mask_ref[...] = _search(scores_ref[...], k_ref[0], n)


def _cuda_kernel(k_ref, scores_ref, mask_ref, *, n):
    inside = lax.broadcasted_iota(jnp.int32, scores_ref.shape, 1) < n
    scores = pltriton.load(scores_ref, mask=inside, other=0.0)
    pltriton.store(mask_ref, _search(scores, k_ref[0], n), mask=inside)


def _search(scores, k, n):
    """A mask of the ``k`` largest among the first ``n`` of every row."""
    index = lax.broadcasted_iota(jnp.int32, scores.shape, 1)
    # What fills the row up comes after everything, also after equals.
    keys = jnp.where(index < n, sortable(scores), LOWEST)

    def count(mask):
        # In float32, which adds whole numbers this small exactly and which every reduction takes.
        return jnp.sum(jnp.where(mask, 1.0, 0.0), axis=1, keepdims=True)

    zero = jnp.zeros((scores.shape[0], 1), jnp.int32)
    return search(keys, index, zero, count, k.astype(jnp.float32), n, early=True).astype(jnp.int32)
