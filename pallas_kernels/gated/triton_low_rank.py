"""x @ down @ up of very few rows on an NVIDIA GPU, in two Triton kernels.

    down    program (rows of ``down``, row of x):  their share of x @ down, float32
    up      program (columns of ``up``, row of x): the sum of all shares, times these columns

Each kernel reads its matrix once, with enough programs to keep reads under way. With more rows XLA, which uses tensor
cores, is faster. On an H100, the choice of blocks of a layer of 4096 in bfloat16 at rank 128 went from 19 to 11 us; a
shorter search for the k largest had a part in that (docs/performance.md).
"""

import functools

import jax.numpy as jnp
from jax import lax

from pallas_kernels.mesh_axes import result
from pallas_kernels.pallas_triton import pl, pltriton
from pallas_kernels.sizes import is_known

MOST_ROWS = 4
TILE, OWNED = 64, 32
"""Rows of ``down`` and columns of ``up`` that a program reads."""
MOST_RANK = 256
"""Up to this rank, a program's part of a matrix fits the registers."""


def takes(x, down, up) -> bool:
    """Whether ``low_rank`` takes arguments of these shapes: a rank that is a power of two, blocks that fit."""
    if not is_known(*x.shape, *down.shape, *up.shape) or x.dtype not in (jnp.float32, jnp.bfloat16):
        return False
    (rows, k), rank = x.shape, down.shape[1]
    return 1 <= rows <= MOST_ROWS and k % TILE == 0 and 16 <= rank <= MOST_RANK and rank & (rank - 1) == 0


def low_rank(x, down, up, *, interpret: bool = False):
    """Float32 [b, n]; see ``low_rank.low_rank``. ``interpret`` runs the kernels without a GPU."""
    (rows, k), rank, n = x.shape, *up.shape
    shares = k // TILE
    call = functools.partial(
        pl.pallas_call, compiler_params=pltriton.CompilerParams(num_warps=4, num_stages=1), interpret=interpret
    )
    parts = call(
        _down_kernel,
        grid=(shares, rows),
        in_specs=[pl.BlockSpec((None, TILE), lambda i, b: (b, i)), pl.BlockSpec((TILE, rank), lambda i, b: (i, 0))],
        out_specs=pl.BlockSpec((None, None, rank), lambda i, b: (b, i, 0)),
        out_shape=result((rows, shares, rank), jnp.float32, x),
        name="low_rank_down_kernel",
    )(x, down)
    # Sides are powers of two. Past the end nothing is read or written.
    return call(
        functools.partial(_up_kernel, shares=shares, n=n, dtype=x.dtype),
        grid=(pl.cdiv(n, OWNED), rows),
        in_specs=[
            pl.BlockSpec((None, pl.next_power_of_2(shares), rank), lambda j, b: (b, 0, 0)),
            pl.BlockSpec((rank, OWNED), lambda j, b: (0, j)),
        ],
        out_specs=pl.BlockSpec((None, OWNED), lambda j, b: (b, j)),
        out_shape=result((rows, n), jnp.float32, x),
        name="low_rank_up_kernel",
    )(parts, up)


def _down_kernel(x_ref, down_ref, part_ref):
    x = x_ref[...].astype(jnp.float32)
    part_ref[...] = (x[:, None] * down_ref[...].astype(jnp.float32)).sum(0)


def _up_kernel(parts_ref, up_ref, y_ref, *, shares, n, dtype):
    exists = lax.broadcasted_iota(jnp.int32, parts_ref.shape, 0) < shares
    # The rounding matches the one of the inner product in ``low_rank``.
    inner = pltriton.load(parts_ref, mask=exists, other=0.0).sum(0).astype(dtype).astype(jnp.float32)
    columns = pl.program_id(0) * OWNED + jnp.arange(OWNED, dtype=jnp.int32) < n
    up = pltriton.load(up_ref, mask=jnp.broadcast_to(columns[None, :], up_ref.shape), other=0.0).astype(jnp.float32)
    pltriton.store(y_ref, (inner[:, None] * up).sum(0), mask=columns)
