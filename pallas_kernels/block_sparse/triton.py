"""Pallas-Triton kernels for NVIDIA GPUs with tensor cores: the block-sparse product and its three gradients.

XLA on a GPU can skip blocks only if it copies the kept ones first. Here a program owns a tile of the result and walks
over the blocks that contribute to it:

    forward         program (rows, columns of y):  y  += gates[:, r, c] * (x[:, r] @ w[r, c])
    dx and dgates   program (rows, columns of x):  q   = dy[:, c] @ w[r, c]^T;  dx += gates[:, r, c] * q;
                                                   dgates[:, r, c] = <x[:, r], q>
    dw              program (tile of w):           dw += x[:, r]^T @ (gates[:, r, c] * dy[:, c])

A bit mask says which blocks these are: one or more words of 32 bits for each tile of rows and block column (or block
row). One pass over the gates makes it, so there is no list, no sort and no atomic addition. A block that no row of the
tile keeps is not read, for any number of rows. Each row's gate is applied to the float32 result of the dot, so only w,
x and the result move. One row is a matrix-vector product on the ordinary cores; two to 16 rows are padded to 16, the
smallest tensor-core product. A large block is walked in parts. Where a result has too few tiles to occupy the chip,
several programs share the walk: with n of them, each takes every n-th kept block, and their sums are added outside.

Numerics: sums are accumulated in float32 and cast once. Products of float32 are as exact as XLA's dense product: one
TF32 product where ``jax_default_matmul_precision`` is not set; three TF32 products, about as exact as float32, where it
is "float32" or "highest"; for one row always float32. Products of bfloat16 are exact. In dw the gate is applied before
the dot. For bfloat16 the scaled rows are split into two terms, so that dw errs only by its last rounding. This costs a
second product, so a training step has four products where dense has three.

Bytes, forward of up to 16 rows: the kept blocks once, and x once for every ``owned`` columns of y.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.block_sparse import triton_kernels
from pallas_kernels.block_sparse.triton_kernels import WalkPlan
from pallas_kernels.layout import block_shape
from pallas_kernels.mesh_axes import result
from pallas_kernels.pallas_triton import pl, pltriton
from pallas_kernels.sizes import FEW_ROWS, is_known

PROGRAMS = 132
"""Programs that occupy the chip: the multiprocessors of an H100 or H200."""
FEW_ROWS_PROGRAMS = 6 * PROGRAMS
"""This many programs keep enough reads under way, and none has to wait for the fullest column."""
SMALLEST_BLOCK = 16
"""Rows and columns of the smallest tensor-core product."""
MOST_SPLITS = 8

Shaped = Array | jax.ShapeDtypeStruct


def check(x: Shaped, w: Shaped, gates: Shaped) -> None:
    """Raises a ValueError that says why, where these kernels do not take arguments that fit together."""
    if not is_known(*x.shape, *w.shape):
        raise ValueError(
            f"x has shape {x.shape} and w {w.shape}; the Triton kernels take sizes that are known when a program is "
            'made. Export one program for each, or use implementation="xla".'
        )
    for name, array in (("x", x), ("w", w)):
        if array.dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(
                f"{name} has dtype {array.dtype}; the Triton kernels take float32 and bfloat16. "
                'Cast it, or use implementation="xla".'
            )
    for size in block_shape(w, gates):
        if size < SMALLEST_BLOCK or size & (size - 1):
            raise ValueError(
                f"w has blocks of {' x '.join(map(str, block_shape(w, gates)))}; the Triton kernels take sizes that "
                f"are powers of two from {SMALLEST_BLOCK} up. Choose another block shape, or use "
                'implementation="xla".'
            )


def forward(
    x: Float[Array, "b K"], w: Float[Array, "..."], gates: Float[Array, "b R C"], *, interpret: bool = False
) -> Float[Array, "b N"]:
    """y [b, N] in the dtype of ``x``; see ``reference.forward``. ``interpret`` runs the kernel without a GPU."""
    check(x, w, gates)
    block, columns = block_shape(w, gates), gates.shape[2]
    if x.shape[0] == 0:
        return jnp.zeros((0, columns * block[1]), x.dtype)
    return product(x, w, _rows_last(gates), interpret=interpret)


def product(x, w, gates, words=None, *, interpret: bool = False):
    """``forward`` for float32 gates [R, C, b]; ``words``: the bit masks of ``_words`` if the caller has them."""
    (num_r, num_c, _), k = gates.shape, x.shape[1]
    n = w.size // k
    block = k // num_r, n // num_c
    plan = _plan(x, block, FORWARD, result=(num_c, block[1]), walked=(num_r, block[0]), interpret=interpret)
    words = _words(_by_tile(gates, plan.row_tile), 0) if words is None else words
    out = _result(plan, n, x)
    kernel = triton_kernels.matvec_kernel if plan.rows == 1 else triton_kernels.forward_kernel
    return _add_splits(_call(kernel, plan, out, words, gates, x, w), x.dtype)


def input_gradients(
    x: Float[Array, "b K"],
    w: Float[Array, "..."],
    gates: Float[Array, "b R C"],
    dy: Float[Array, "b N"],
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "b K"], Float[Array, "b R C"]]:
    """dx [b, K] and dgates [b, R, C], zero outside the support of the gates; see ``reference.input_gradients``."""
    check(x, w, gates)
    if x.shape[0] == 0:
        return jnp.zeros_like(x), jnp.zeros_like(gates)
    (bk, bn), (rows, num_r, num_c) = block_shape(w, gates), gates.shape
    plan = _plan(x, (bk, bn), BACKWARD, result=(num_r, bk), walked=(num_c, bn), interpret=interpret)
    by_row = _rows_last(gates)
    words = _words(_by_tile(by_row, plan.row_tile), 1)
    parts = (num_r, bk // plan.owned, num_c, bn // plan.step, rows)
    out = (
        _result(plan, num_r * bk, x),
        result((parts[0] * parts[1], parts[2] * parts[3], rows), jnp.float32, x),
    )
    dx, dgates = _call(triton_kernels.input_gradients_kernel, plan, out, words, by_row, x, w, dy)
    dgates = dgates.reshape(parts).sum((1, 3)).transpose(2, 0, 1)
    # An entry that no program visited is not initialised and may be NaN, so it is selected away, not multiplied by 0.
    return _add_splits(dx, x.dtype), jnp.where(gates != 0, dgates, 0).astype(gates.dtype)


def weight_gradient(
    x: Float[Array, "b K"],
    w: Float[Array, "..."],
    gates: Float[Array, "b R C"],
    dy: Float[Array, "b N"],
    *,
    interpret: bool = False,
) -> Float[Array, "..."]:
    """dw in the layout and dtype of ``w``, whose values are not read; see ``reference.weight_gradient``."""
    check(x, w, gates)
    if x.shape[0] == 0:
        return jnp.zeros_like(w)
    bk, bn = block_shape(w, gates)
    # Rows and columns of w in a tile of dw. For float32 these are the fastest on an H100.
    narrow = x.dtype == jnp.bfloat16
    down, across = min(bk, 128 if narrow else 32), min(bn, 128)
    row_tile = 16 if x.shape[0] <= FEW_ROWS else 64
    plan = WalkPlan(
        rows=x.shape[0],
        row_tile=row_tile,
        owned=across,
        step=down,
        tiles=x.shape[1] // down,
        strips=dy.shape[1] // across,
        splits=1,
        parts=1,
        block=(bk, bn),
        # Three TF32 products need more registers than one.
        num_warps=4 if not narrow and triton_kernels.takes_single_products() else 8,
        num_stages=3 if narrow else 2,
        interpret=interpret,
    )
    gates = _rows_last(gates)
    words = _words(_by_tile(gates, row_tile), 2)
    out = result(w.shape, w.dtype, x)
    return _call(triton_kernels.weight_gradient_kernel, plan, out, words, gates, x, dy)


# Plans and masks ------------------------------------------------------------------------------------------------------


class Tile(NamedTuple):
    """Rows and columns of the part of a result that a program owns, and how the program is run."""

    rows: int
    owned: int
    num_warps: int = 4
    num_stages: int = 3


ONE_ROW = {"float32": [Tile(1, 32, 4, 1)], "bfloat16": [Tile(1, 128, 4, 1), Tile(1, 64, 4, 1), Tile(1, 32, 4, 1)]}
UP_TO_16_ROWS = {
    "float32": [Tile(16, 64, num_stages=2), Tile(16, 32, num_stages=2)],
    "bfloat16": [Tile(16, 64), Tile(16, 32)],
}
OF_BFLOAT16 = [Tile(128, 128, 8), Tile(64, 128, 8), Tile(64, 64), Tile(64, 32)]
FORWARD = {"float32": [Tile(128, 64), Tile(32, 64), Tile(32, 32)], "bfloat16": OF_BFLOAT16}
BACKWARD = {"float32": [Tile(128, 128, 8), Tile(64, 32)], "bfloat16": OF_BFLOAT16}
"""Largest first. Timings on an H100 chose the tiles for more than 16 rows of float32 (K = 1536) and the first tile for
one row of bfloat16 (K = 4096). For one row of float32 they showed no difference among tiles. The others have not been
timed."""


def _plan(x, block, tiles_of, *, result, walked, interpret) -> WalkPlan:
    """The largest tiles that still occupy the chip; ``result`` and ``walked``: (blocks, size).

    Several programs share a walk where there are too few programs. With few rows each of them still gets four blocks or
    more to choose from.
    """
    rows, dtype = x.shape[0], str(x.dtype)
    few = rows <= FEW_ROWS
    choices = ONE_ROW[dtype] if rows == 1 else UP_TO_16_ROWS[dtype] if few else tiles_of[dtype]
    most = min(walked[0] // 4 if few else walked[0], MOST_SPLITS)
    wide = dtype == "float32" and not few
    enough = 4 * PROGRAMS if rows == 1 else 2 * PROGRAMS if wide else PROGRAMS
    for tile in choices:
        owned = min(tile.owned, result[1])
        tiles, strips = pl.cdiv(rows, tile.rows), result[0] * result[1] // owned
        if tiles * strips * (max(1, most) if rows == 1 else 1) >= enough:
            break
    step = min(walked[1], 64 if wide or (rows == 1 and owned > 64) else 128)
    wanted = FEW_ROWS_PROGRAMS if few else enough
    # Only halves, quarters and eighths of a walk were timed, so the number is a power of two where ``most`` allows it.
    splits = pl.next_power_of_2(pl.cdiv(wanted, tiles * strips))
    return WalkPlan(
        rows=rows,
        row_tile=tile.rows,
        owned=owned,
        step=step,
        tiles=tiles,
        strips=strips,
        splits=max(1, min(splits, most)),
        parts=walked[1] // step,
        block=block,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        interpret=interpret,
    )


def _rows_last(gates):
    """Gates as float32 [R, C, b]: the gates of one block are contiguous."""
    return gates.astype(jnp.float32).transpose(1, 2, 0)


def _by_tile(gates, row_tile):
    """Where gates [R, C, b] are not zero, by tile of rows: bool [R, C, tiles, row_tile]."""
    r, c, rows = gates.shape
    tiles = pl.cdiv(rows, row_tile)
    return jnp.pad(gates != 0, ((0, 0), (0, 0), (0, tiles * row_tile - rows))).reshape(r, c, tiles, row_tile)


def _words(kept, axis):
    """Bit masks of what is kept along one axis of bool [R, C, tiles, row_tile]: int32 [words, ..., tiles, 1].

    Bit i of word j stands for entry 32 j + i. Kernels join the masks along the last axis; here that axis has one mask,
    for all rows of a tile. The masks are made by one reduction, which XLA fuses into one or two small kernels.
    """
    kept = jnp.moveaxis(kept, axis, 0)
    words = pl.cdiv(kept.shape[0], 32)
    kept = jnp.pad(kept, [(0, 32 * words - kept.shape[0])] + [(0, 0)] * (kept.ndim - 1))
    kept = kept.reshape(words, 32, *kept.shape[1:])
    values = jnp.where(kept, jnp.uint32(1) << lax.broadcasted_iota(jnp.uint32, kept.shape, 1), jnp.uint32(0))
    packed = lax.reduce(values, jnp.uint32(0), lax.bitwise_or, (1, values.ndim - 1))
    return lax.bitcast_convert_type(packed, jnp.int32)[..., None]


def _result(plan: WalkPlan, width, x):
    return result((plan.splits, plan.rows, width), x.dtype if plan.splits == 1 else jnp.float32, x)


def _add_splits(parts, dtype):
    # XLA fuses a sum that is written out into the next operation; a reduction would be a kernel of its own.
    return functools.reduce(jnp.add, list(parts)).astype(dtype)


def _call(kernel, plan: WalkPlan, out_shape, *operands):
    return pl.pallas_call(
        functools.partial(kernel, plan),
        out_shape=out_shape,
        grid=(plan.programs,),
        compiler_params=pltriton.CompilerParams(num_warps=plan.num_warps, num_stages=plan.num_stages),
        interpret=plan.interpret,
        name=kernel.__name__,
    )(*operands)
