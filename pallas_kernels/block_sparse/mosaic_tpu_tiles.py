"""How the TPU kernels cut their work and see their operands.

Here are the list of kept blocks, tiles and a ring of blocks that fit VMEM, and views of the operands: blocks of either
layout, rows in whole registers, gates in lanes.

Gates [b, R, C] with R or C as their last dimension would be padded to 128 lanes, many times their size. So the gates
of a tile of blocks, which one grid step needs, lie side by side in lanes: [tiles, b, lanes], where lane = row in tile *
columns of a tile + column in tile.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

LANES = 128
TILE_ROWS = (512, 256, 128, 64, 32, 16)
TILE_BYTES = 32 * 2**20
"""VMEM for the tiles of inputs, gates and outputs; the smallest VMEM is 64 MiB a core (v5p, TPU7x)."""
RING_BYTES = 4 * 2**20
"""VMEM for blocks under way or waiting: more than bandwidth times latency."""
SPARE_BYTES = 12 * 2**20
"""VMEM left to the compiler beside what a kernel asks for."""


def round_up(size: int, multiple: int) -> int:
    return pl.cdiv(size, multiple) * multiple


def block_at(ref, r, c, shape: tuple[int, int]):
    """The block (r, c) of a reference in either layout, as a reference."""
    if len(ref.shape) == 4:
        return ref.at[c, r]
    return ref.at[columns(r, shape[0]), columns(c, shape[1])]


def columns(block, width: int):
    """The columns of a block, as a slice that the compiler knows to start at a register."""
    return pl.ds(pl.multiple_of(block * width, LANES), width)


def pad_rows(array, rows: int):
    """``array`` padded with rows of zeros to ``rows`` in all."""
    missing = rows - array.shape[0]
    return jnp.pad(array, ((0, missing), *((0, 0),) * (array.ndim - 1))) if missing else array


def tiles_of_blocks(array, tile: tuple[int, int]):
    """[b, R, C] as [tiles, b, blocks of a tile], with zeros where a tile reaches over the edge."""
    rows, num_r, num_c = array.shape
    down, across = pl.cdiv(num_r, tile[0]), pl.cdiv(num_c, tile[1])
    array = jnp.pad(array, ((0, 0), (0, down * tile[0] - num_r), (0, across * tile[1] - num_c)))
    array = array.reshape(rows, down, tile[0], across, tile[1]).transpose(1, 3, 0, 2, 4)
    return array.reshape(down * across, rows, tile[0] * tile[1])


def to_lanes(gates, tile: tuple[int, int], rows: int):
    """Gates [b, R, C] as float32 [tiles, rows, lanes], lanes a multiple of 128."""
    tiled = tiles_of_blocks(pad_rows(gates.astype(jnp.float32), rows), tile)
    return jnp.pad(tiled, ((0, 0), (0, 0), (0, round_up(tiled.shape[2], LANES) - tiled.shape[2])))


def from_lanes(lanes, shape: tuple[int, int, int], tile: tuple[int, int]):
    """The first rows of the inverse of ``to_lanes``: [b, R, C] = ``shape``."""
    rows, num_r, num_c = shape
    down, across = pl.cdiv(num_r, tile[0]), pl.cdiv(num_c, tile[1])
    array = lanes[:, :rows, : tile[0] * tile[1]].reshape(down, across, rows, *tile).transpose(2, 0, 3, 1, 4)
    return array.reshape(rows, down * tile[0], across * tile[1])[:, :num_r, :num_c]


def lane_window(lane, rows: int):
    """The slice of the 128 lanes around a lane, and a mask [rows, 128] of the lane's place in it."""
    window = pl.ds(pl.multiple_of(jnp.bitwise_and(lane, -LANES), LANES), LANES)
    mine = lax.broadcasted_iota(jnp.int32, (rows, LANES), 1) == jnp.bitwise_and(lane, LANES - 1)
    return window, mine


def gate_column(gates_ref, rows: slice, lane):
    """The gates of one block, [rows, 1], from a reference [1, rows, lanes]."""
    window, mine = lane_window(lane, rows.stop - rows.start)
    return jnp.sum(jnp.where(mine, gates_ref[0, rows, window], 0.0), axis=1, keepdims=True)


def dot(a, b, *, transpose_b: bool = False):
    """a @ b, or a @ b^T, in float32, at the precision of ``jax_default_matmul_precision``.

    Mosaic has two precisions: one bfloat16 pass, and full float32, which also serves everything in between. It refuses
    full float32 for bfloat16 operands; one pass multiplies those exactly.
    """
    chosen = jax.config.jax_default_matmul_precision  # pyrefly: ignore[missing-attribute]
    single = chosen in (None, "default", "fastest", "bfloat16", "BF16_BF16_F32")
    precision = lax.Precision.DEFAULT if single or a.dtype == jnp.bfloat16 else lax.Precision.HIGHEST
    contract = ((1,), (1 if transpose_b else 0,)), ((), ())
    return lax.dot_general(a, b, contract, precision=precision, preferred_element_type=jnp.float32)


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
