"""Pallas kernel for TPUs (Mosaic): the gradient of the weight, dw[r, c] = x[:, r]^T @ (gates[:, r, c] * dy[:, c]).

The kernel is compute-bound: the sum runs over all rows, and many output blocks share each tile of x and dy. The grid
runs over tiles of output blocks and, innermost, over tiles of rows; sums stay in VMEM in float32. A block that no row
keeps costs one test per tile and is written as zeros. The gate varies along the summed dimension, so it is applied
before the dot, in float32. For bfloat16 the scaled operand is split into a sum of two bfloat16 numbers, which takes two
products, because one bfloat16 number would lose a digit of the result.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.block_sparse.mosaic_tpu_tiles import (
    LANES,
    SPARE_BYTES,
    block_at,
    columns,
    dot,
    gate_column,
    pad_rows,
    round_up,
    tiles_of_blocks,
    to_lanes,
)
from pallas_kernels.layout import block_shape
from pallas_kernels.mesh_axes import result

TILE_FEATURES = 1024
"""Side of a tile of output blocks: enough products for every byte of x and dy. A tile has fewer blocks if these are
long."""
TILE_ROWS = 256


def weight_gradient(x, w, gates, dy, *, interpret=False):
    """dw in the layout and dtype of ``w``, whose values are not read; see ``reference.weight_gradient``."""
    rows, num_r, num_c = gates.shape
    bk, bn = shape = block_shape(w, gates)
    if rows == 0:
        return jnp.zeros_like(w)
    tile, step, vmem = cut(rows, w, gates)
    (height, width), padded = (tile[0] * bk, tile[1] * bn), round_up(rows, step)
    down, across = (pl.cdiv(num, side) for num, side in zip((num_r, num_c), tile, strict=True))
    kept = tiles_of_blocks((gates != 0).any(0, keepdims=True).astype(jnp.int32), tile).reshape(-1)
    lanes = to_lanes(gates, tile, padded)
    if w.ndim == 4:
        out_spec = pl.BlockSpec((*tile[::-1], bk, bn), lambda i, j, t, *_: (j, i, 0, 0))
    else:
        out_spec = pl.BlockSpec((height, width), lambda i, j, t, *_: (i, j))
    return pl.pallas_call(
        functools.partial(_kernel, tile=tile, shape=shape),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(down, across, padded // step),
            in_specs=[
                pl.BlockSpec((height, step), lambda i, j, t, *_: (i, t)),
                pl.BlockSpec((step, width), lambda i, j, t, *_: (t, j)),
                pl.BlockSpec((1, step, lanes.shape[2]), lambda i, j, t, *_: (i * across + j, t, 0)),
            ],
            out_specs=out_spec,
            scratch_shapes=[pltpu.VMEM((height, width), jnp.float32)],
        ),
        out_shape=result(w.shape, w.dtype, x),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=vmem
        ),
        interpret=interpret,
    )(kept, pad_rows(x, padded).T, pad_rows(dy, padded), lanes)


class Cut(NamedTuple):
    """How the work is cut: ``tile`` blocks down and across, ``step`` rows at a time; ``vmem`` in bytes."""

    tile: tuple[int, int]
    step: int
    vmem: int


def cut(rows, w, gates) -> Cut:
    """Tiles of at most ``TILE_FEATURES``^2 weights, which is also the limit for a block in ``mosaic_tpu.check``."""
    (_, num_r, num_c), (bk, bn) = gates.shape, block_shape(w, gates)
    tile = _blocks_in_tile(num_r, bk, bn), _blocks_in_tile(num_c, bn, bk)
    height, width, size = tile[0] * bk, tile[1] * bn, w.dtype.itemsize
    step = min(TILE_ROWS, round_up(rows, LANES))
    lanes = round_up(tile[0] * tile[1], LANES)
    # VMEM holds the sums once, and every input and output tile twice.
    vmem = height * width * (4 + 2 * size) + 2 * step * ((height + width) * size + lanes * 4) + SPARE_BYTES
    return Cut(tile, step, vmem)


def _blocks_in_tile(number: int, size: int, other_size: int) -> int:
    """Blocks along one side of a tile, fewer where a block's other side is long; tiles are as equal as possible."""
    features = TILE_FEATURES**2 // max(TILE_FEATURES, other_size)
    return pl.cdiv(number, pl.cdiv(number, max(1, features // size)))


def _kernel(kept, x, dy, gates, dw, sums, *, tile, shape):
    bk, bn = shape
    blocks = tile[0] * tile[1]
    first = (pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)) * blocks
    step = pl.program_id(2)

    def place(i):
        r = lax.div(i, tile[1])
        return r, i - r * tile[1]

    @pl.when(step == 0)
    def _():
        @pl.loop(0, blocks)
        def _(i):
            block_at(sums, *place(i), shape)[...] = jnp.zeros(shape, jnp.float32)

    @pl.loop(0, blocks)
    def _(i):
        @pl.when(kept[first + i] != 0)
        def _():
            r, c = place(i)
            scaled = dy[:, columns(c, bn)].astype(jnp.float32) * gate_column(gates, slice(0, dy.shape[0]), i)
            block_at(sums, r, c, shape)[...] += _split_dot(x[pl.ds(pl.multiple_of(r * bk, LANES), bk), :], scaled)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        @pl.loop(0, blocks)
        def _(i):
            block_at(dw, *place(i), shape)[...] = block_at(sums, *place(i), shape)[...].astype(dw.dtype)


def _split_dot(a, b):
    """a @ b for a float32 ``b``, which is taken with twice the digits of ``a``'s dtype."""
    if a.dtype == jnp.float32:
        return dot(a, b)
    high = b.astype(a.dtype)
    low = (b - high.astype(jnp.float32)).astype(a.dtype)
    return dot(a, high) + dot(a, low)
