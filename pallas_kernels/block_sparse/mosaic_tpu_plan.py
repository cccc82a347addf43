"""How the work of the TPU kernels over kept blocks is cut: the list of blocks, and tiles and a ring that fit VMEM."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels.block_sparse.mosaic_tpu_tiles import LANES, SPARE_BYTES, pad_rows, round_up

TILE_ROWS = (512, 256, 128, 64, 32, 16)
TILE_BYTES = 32 * 2**20
"""VMEM for the tiles of inputs, gates and outputs; the smallest VMEM is 64 MiB a core (v5p, TPU7x)."""
RING_BYTES = 4 * 2**20
"""Blocks under way or waiting: above bandwidth times latency."""


def kept_list(kept, group: int):
    """The list of kept blocks of a mask [M, m], sorted by M, and where in it every group of ``group`` M begins.

    Returns (starts [groups + 1], M [M * m], m [M * m]), int32. Entries past the last start are undefined. By a
    sort, because a scatter on a TPU writes one element after another.
    """
    size = kept.size
    groups = pl.cdiv(kept.shape[0], group)
    # The order among the omitted does not matter; a stable sort would carry an index with every element.
    order = jnp.sort(jnp.where(kept.reshape(size), jnp.arange(size, dtype=jnp.int32), size), stable=False)
    counts = pad_rows(kept, groups * group).reshape(groups, group * kept.shape[1]).sum(1, dtype=jnp.int32)
    starts = jnp.concatenate([jnp.zeros((1,), jnp.int32), jnp.cumsum(counts)])
    return starts, lax.div(order, kept.shape[1]), lax.rem(order, kept.shape[1])


class Plan(NamedTuple):
    """How the work is cut: ``rows`` after padding, in tiles of ``tile``; ``group`` output blocks a grid step;
    ``unroll`` blocks an iteration, a power of two; ``slots`` iterations under way, a power of two; VMEM in bytes."""

    rows: int
    tile: int
    group: int
    unroll: int
    slots: int
    vmem: int


def num_cores() -> int:
    """TensorCores of one device, between which the steps of a grid are divided: two on v4 and v5p, otherwise one.

    One where no TPU is at hand: a program compiled elsewhere for v4 or v5p leaves a core idle in products of few rows.
    """
    return getattr(jax.devices()[0], "num_cores", 1)


def _power_of_two(limit: int) -> int:
    return 1 << max(0, limit.bit_length() - 1)


def plan_tiles(rows, num_outputs, w, shape, *, whole, outputs, lanes, inputs=0) -> Plan:
    """Tiles that fit VMEM: of the widths, ``whole`` is in VMEM at once, the others are widths of one output block.

    Every tile is held twice, one copy being worked on and one under way. The smallest fits whatever
    ``mosaic_tpu.check`` lets pass. Where all rows are one tile, the groups are as many for every core.
    """
    size = w.dtype.itemsize
    sublanes = 32 // size
    for limit in TILE_ROWS:
        tile = round_up(pl.cdiv(rows, pl.cdiv(rows, limit)), sublanes)
        fixed = 2 * tile * (whole * size + 2 * LANES * 4)
        each = tile * ((4 + 2 * size) * outputs + 2 * size * inputs + 8 * lanes)
        group = min(num_outputs, (TILE_BYTES - fixed) // each)
        if group > 0:
            break
    groups = pl.cdiv(num_outputs, group)
    group = pl.cdiv(num_outputs, round_up(groups, num_cores()) if tile >= rows else groups)
    block = shape[0] * shape[1] * size
    unroll = _power_of_two(max(1, min(256 // tile, 16, RING_BYTES // (4 * block))))
    slots = _power_of_two(max(2, min(32, RING_BYTES // (unroll * block))))
    vmem = fixed + group * each + slots * unroll * block + SPARE_BYTES
    return Plan(round_up(rows, sublanes), tile, group, unroll, slots, vmem)
