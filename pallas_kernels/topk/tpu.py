"""``search`` as one Pallas kernel for TPUs (Mosaic).

A program holds all scores of its rows in VMEM. It reads them once and writes one mask. So there is one launch between
scores and gates, and nothing waits for the host.
"""

import functools

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.block_sparse.mosaic_tpu_tiles import LANES, pad_rows, round_up
from pallas_kernels.mesh_axes import result
from pallas_kernels.topk.search import search_in_kernel

TILE_BYTES = 2**20
"""Bytes of the scores of one program."""


def largest(scores, k, *, interpret=False):
    """Marks the ``k`` largest of every row of ``scores`` [b, n]; see ``search.largest``."""
    rows, n = scores.shape
    width = round_up(n, LANES)
    tile = min(round_up(rows, 8), max(8, TILE_BYTES // (4 * width) // 8 * 8))
    padded = jnp.pad(pad_rows(scores.astype(jnp.float32), round_up(rows, tile)), ((0, 0), (0, width - n)))
    block = pl.BlockSpec((tile, width), lambda i, *_: (i, 0))
    mask = pl.pallas_call(
        functools.partial(_kernel, n=n),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(padded.shape[0] // tile,), in_specs=[block], out_specs=block
        ),
        out_shape=result(padded.shape, jnp.int32, padded),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
    )(k.reshape(1), padded)
    return mask[:rows, :n] != 0


def _kernel(k_ref, scores_ref, mask_ref, *, n):
    mask_ref[...] = search_in_kernel(scores_ref[...], k_ref[0], n)
