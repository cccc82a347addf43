"""How the TPU kernels cut their work: the list of kept blocks, and tiles and a ring of blocks that fit VMEM."""

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
"""VMEM for blocks under way or waiting: more than bandwidth times latency."""


def kept_list(kept, group: int):
    """The list of kept blocks of a mask [M, m], sorted by M, and where in it every group of ``group`` M begins.

    Returns (starts [groups + 1], M [M * m], m [M * m]), int32. Entries past the last start are undefined. A sort makes
    the list, because a scatter on a TPU writes one element after another.
    """
    size = kept.size
    groups = pl.cdiv(kept.shape[0], group)
    # The sort need not be stable, as the order of omitted blocks does not matter: a stable one sorts indices too.
    order = jnp.sort(jnp.where(kept.reshape(size), jnp.arange(size, dtype=jnp.int32), size), stable=False)
    counts = pad_rows(kept, groups * group).reshape(groups, group * kept.shape[1]).sum(1, dtype=jnp.int32)
    starts = jnp.concatenate([jnp.zeros((1,), jnp.int32), jnp.cumsum(counts)])
    return starts, lax.div(order, kept.shape[1]), lax.rem(order, kept.shape[1])


class RingPlan(NamedTuple):
    """How the work is cut: ``rows`` after padding, in tiles of ``tile``; ``group`` output blocks per grid step;
    ``unroll`` blocks per iteration and ``slots`` iterations under way, both powers of two; ``vmem`` in bytes."""

    rows: int
    tile: int
    group: int
    unroll: int
    slots: int
    vmem: int


def num_cores() -> int:
    """TensorCores of one device, which share the steps of a grid: two on v4 and v5p, otherwise one.

    It is one where no TPU is present. So a program compiled elsewhere for v4 or v5p leaves a core idle in products of
    few rows.
    """
    return getattr(jax.devices()[0], "num_cores", 1)


def _power_of_two(limit: int) -> int:
    return 1 << max(0, limit.bit_length() - 1)


def plan_tiles(rows, num_outputs, w, shape, *, whole, outputs, lanes, inputs=0) -> RingPlan:
    """Tiles that fit VMEM. ``whole`` features are in VMEM at once; the other widths are those of one output block.

    VMEM holds every tile twice: one copy in use, one under way. The smallest tile fits for all arguments that
    ``mosaic_tpu.check`` accepts. Where all rows are one tile, every core gets the same number of groups.
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
    return RingPlan(round_up(rows, sublanes), tile, group, unroll, slots, vmem)
