"""Gates of few rows on an NVIDIA GPU: one Triton kernel from the scores to all that the product asks for.

For one row XLA would launch six small kernels between scores and product: bias, k largest, scaling, sums, gates and
bit masks. Here a program holds the scores of its row in registers, arranged as the blocks are. It searches for the k
largest (as ``topk`` does), scales them, and writes the gates and the bit masks of kept blocks.
"""

import functools

import jax.numpy as jnp
from jax import lax

from pallas_kernels.block_sparse import triton
from pallas_kernels.gated.gate_values import scaled_scores
from pallas_kernels.mesh_axes import result
from pallas_kernels.pallas_triton import pl, pltriton
from pallas_kernels.sizes import FEW_ROWS
from pallas_kernels.topk.search import LOWEST, score, search, sortable

MAX_SCORES = 16_384
"""Scores of one row, with rows and columns of the grid rounded up to powers of two: 32 per thread. Twice as many do not
fit the registers: compiled for sm_90a, they spill some 400 bytes per thread. This many spill 40 bytes at most, and none
in usual grids."""


def takes(x, w, gates) -> bool:
    """Whether ``gated_matmul`` takes arguments of these shapes and dtypes."""
    try:
        triton.check(x, w, gates)
    except ValueError:
        return False
    rows, *grid = gates.shape
    return 1 <= rows <= FEW_ROWS and pl.next_power_of_2(grid[0]) * pl.next_power_of_2(grid[1]) <= MAX_SCORES


def gated_matmul(
    x, w, scores, bias, k, *, grid: tuple[int, int], activation: str, normalization: str, interpret: bool = False
):
    """(y [b, N], gates [b, R, C]) in two kernels; see ``gated.gated_matmul``."""
    gates, words = gates_and_words(
        scores, bias, k, grid=grid, activation=activation, normalization=normalization, interpret=interpret
    )
    return triton.product(x, w, gates, words, interpret=interpret), gates.transpose(2, 0, 1)


def gates_and_words(scores, bias, k, *, grid, activation, normalization, interpret=False):
    """Gates [R, C, b] and their bit masks [words, C, 1, b], both in the form that the kernels of ``triton`` take."""
    rows, (num_r, num_c) = scores.shape[0], grid
    scale = functools.partial(scaled_scores, activation=activation, normalization=normalization)
    size = pl.next_power_of_2(num_r), pl.next_power_of_2(num_c)
    num_words = pl.cdiv(num_r, 32)
    return pl.pallas_call(
        functools.partial(_kernel, grid=grid, scale=scale),
        grid=(rows,),
        # Sides are powers of two. Past the end of the grid ``inside`` is false, and nothing is read or written.
        in_specs=[
            pl.BlockSpec((1,), lambda i: (0,)),
            pl.BlockSpec((None, *size), lambda i: (i, 0, 0)),
            pl.BlockSpec(size, lambda i: (0, 0)),
        ],
        out_specs=(
            pl.BlockSpec((*size, None), lambda i: (0, 0, i)),
            pl.BlockSpec((num_words, size[1], None, None), lambda i: (0, 0, 0, i)),
        ),
        out_shape=(
            result((num_r, num_c, rows), jnp.float32, scores),
            result((num_words, num_c, 1, rows), jnp.int32, scores),
        ),
        compiler_params=pltriton.CompilerParams(num_warps=_warps(size[0] * size[1]), num_stages=1),
        interpret=interpret,
        name="gates_kernel",
    )(k.reshape(1), scores.astype(jnp.float32).reshape(rows, *grid), bias.astype(jnp.float32).reshape(grid))


def _warps(scores: int) -> int:
    """The fewest warps whose registers hold the scores: fewer warps wait less for each other at every count."""
    return min(16 if scores > 8192 else 8, max(1, scores // 256))


def _kernel(k_ref, scores_ref, bias_ref, gates_ref, words_ref, *, grid, scale):
    size, (num_r, num_c) = bias_ref.shape, grid
    r, c = (lax.broadcasted_iota(jnp.int32, size, axis) for axis in range(2))
    inside = (r < num_r) & (c < num_c)
    scores = pltriton.load(scores_ref, mask=inside, other=0.0)
    scores += pltriton.load(bias_ref, mask=inside, other=0.0)

    def over_all(reduce, values):
        # Triton reduces one axis at a time.
        return reduce(reduce(values, axis=1, keepdims=True), axis=0, keepdims=True)

    def count(mask):
        return over_all(jnp.sum, jnp.where(mask, 1.0, 0.0))

    def extremes(keys):
        return over_all(jnp.min, keys), over_all(jnp.max, keys)

    keys = jnp.where(inside, sortable(scores), LOWEST)
    # Entries past the end of a row of the grid get an index beyond all blocks, so ``search`` does not choose them.
    index = jnp.where(inside, r * num_c + c, num_r * num_c)
    zero, k, n = jnp.zeros((1, 1), jnp.int32), k_ref[0].astype(jnp.float32), num_r * num_c
    kept = search(keys, index, zero, count, k, n, early=True, extremes=extremes) & inside
    gates = scale(
        # Recomputed from the keys, so that the scores occupy no registers during the search.
        jnp.where(inside, score(keys), 0.0),
        kept,
        num_r * num_c,
        total=functools.partial(over_all, jnp.sum),
        maximum=functools.partial(over_all, jnp.max),
    )
    pltriton.store(gates_ref, gates, mask=inside)
    for word in map(jnp.int32, range(words_ref.shape[0])):
        bits = jnp.where((gates != 0) & (r >> 5 == word), 1 << (r & 31), 0).sum(0)
        column = jnp.arange(size[1], dtype=jnp.int32) < num_c
        pltriton.store(words_ref.at[word], bits, mask=column)
