"""The Triton kernels: what one program does. ``triton`` explains why, plans the sizes and launches the kernels.

The arrays of a program have sizes that are powers of two. Rows past the end are read as zeros and not written. Offsets
are block indices times constants, so that the compiler sees that it can move 16 bytes at once.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.pallas_triton import pl, pltriton


class WalkPlan(NamedTuple):
    """Static sizes of one kernel. The result is cut into tiles of ``row_tile`` x ``owned``.

    The walk advances by ``step``; a block has ``parts`` steps. ``splits`` programs share one walk.
    """

    rows: int
    row_tile: int
    owned: int
    step: int
    tiles: int
    strips: int
    splits: int
    parts: int
    block: tuple[int, int]
    num_warps: int
    num_stages: int
    interpret: bool

    @property
    def programs(self) -> int:
        return self.tiles * self.strips * self.splits


# Kernels --------------------------------------------------------------------------------------------------------------


def matvec_kernel(plan: WalkPlan, words_ref, gates_ref, x_ref, w_ref, y_ref):
    _, strip, split = _position(plan)
    c = lax.div(strip, plan.block[1] // plan.owned)

    def add(i, total):
        gate = gates_ref[lax.div(i, plan.block[0] // plan.step), c, 0]
        x = x_ref[0, pl.ds(i * plan.step, plan.step)].astype(jnp.float32) * gate
        w = _weights(w_ref, plan, i, strip, (plan.step, plan.owned))[...]
        return total + x[:, None] * w.astype(jnp.float32)

    total = _walk(plan, words_ref, split, (c, 0), add, jnp.zeros((plan.step, plan.owned), jnp.float32))
    y_ref[split, 0, pl.ds(strip * plan.owned, plan.owned)] = total.sum(0).astype(y_ref.dtype)


def forward_kernel(plan: WalkPlan, words_ref, gates_ref, x_ref, w_ref, y_ref):
    tile, strip, split = _position(plan)
    c = lax.div(strip, plan.block[1] // plan.owned)
    rows, inside = _rows(plan, tile)

    def add(i, total):
        gate = _load(gates_ref.at[lax.div(i, plan.block[0] // plan.step), c, rows], inside)
        x = _load(x_ref.at[rows, pl.ds(i * plan.step, plan.step)], inside[:, None])
        w = _weights(w_ref, plan, i, strip, (plan.step, plan.owned))[...]
        return total + gate[:, None] * _dot(plan, x, w, (1, 0))

    total = _walk(plan, words_ref, split, (c, tile), add, jnp.zeros((plan.row_tile, plan.owned), jnp.float32))
    _store(y_ref.at[split, rows, pl.ds(strip * plan.owned, plan.owned)], total, inside)


def input_gradients_kernel(plan: WalkPlan, words_ref, gates_ref, x_ref, w_ref, dy_ref, dx_ref, dgates_ref):
    tile, strip, split = _position(plan)
    r = lax.div(strip, plan.block[0] // plan.owned)
    rows, inside = _rows(plan, tile)
    x = _load(x_ref.at[rows, pl.ds(strip * plan.owned, plan.owned)], inside[:, None]).astype(jnp.float32)

    def add(j, total):
        gate = _load(gates_ref.at[r, lax.div(j, plan.block[1] // plan.step), rows], inside)
        dy = _load(dy_ref.at[rows, pl.ds(j * plan.step, plan.step)], inside[:, None])
        w = _weights(w_ref, plan, strip, j, (plan.owned, plan.step))[...]
        q = _dot(plan, dy, w, (1, 1))
        pltriton.store(dgates_ref.at[strip, j, rows], (x * q).sum(1), mask=inside)
        return total + gate[:, None] * q

    total = _walk(plan, words_ref, split, (r, tile), add, jnp.zeros((plan.row_tile, plan.owned), jnp.float32))
    _store(dx_ref.at[split, rows, pl.ds(strip * plan.owned, plan.owned)], total, inside)


def weight_gradient_kernel(plan: WalkPlan, words_ref, gates_ref, x_ref, dy_ref, dw_ref):
    i, j, split = _position(plan)
    r, c = lax.div(i, plan.block[0] // plan.step), lax.div(j, plan.block[1] // plan.owned)

    def add(tile, total):
        rows, inside = _rows(plan, tile)
        gate = _load(gates_ref.at[r, c, rows], inside)
        x = _load(x_ref.at[rows, pl.ds(i * plan.step, plan.step)], inside[:, None])
        dy = _load(dy_ref.at[rows, pl.ds(j * plan.owned, plan.owned)], inside[:, None])
        scaled = gate[:, None] * dy.astype(jnp.float32)
        if dy.dtype == jnp.float32:
            return total + _dot(plan, x, scaled, (0, 0))
        # The gate is applied before the dot, and rounding gate * dy once would double the error of dw. So the dot
        # takes it as a sum of two terms. A mask cuts off the first, because a compiler may drop a cast and its inverse.
        high = lax.bitcast_convert_type(lax.bitcast_convert_type(scaled, jnp.int32) & ~0xFFFF, jnp.float32)
        total = total + _dot(plan, x, high.astype(dy.dtype), (0, 0))
        return total + _dot(plan, x, (scaled - high).astype(dy.dtype), (0, 0))

    total = _walk(plan, words_ref, split, (r, c), add, jnp.zeros((plan.step, plan.owned), jnp.float32))
    _weights(dw_ref, plan, i, j, (plan.step, plan.owned))[...] = total.astype(dw_ref.dtype)


# Parts of them --------------------------------------------------------------------------------------------------------


def _position(plan: WalkPlan):
    """(row tile, strip, split) of this program. Neighbours share a strip, and so share blocks of w in the cache."""
    index = pl.program_id(0)
    rest = lax.div(index, plan.tiles)
    return lax.rem(index, plan.tiles), lax.rem(rest, plan.strips), lax.div(rest, plan.strips)


def _walk(plan: WalkPlan, words_ref, split, where, body, carry):
    """``body(index, carry)`` for the parts of every ``plan.splits``-th block marked in ``words_ref[:, *where]``.

    The order is ascending, and starts with the marked block at place ``split``. A block is marked if any of the words
    along the last axis has its bit. Dealing blocks out by their place among the marked ones gives every split the same
    number, give or take one.
    """

    def drop(_, bits):
        return bits & (bits - 1)

    def word(i, state):
        skip, carry = state
        bits = functools.reduce(jnp.bitwise_or, (words_ref[(i, *where, j)] for j in range(words_ref.shape[-1])))
        marked = lax.population_count(bits)
        mine = lax.div(jnp.maximum(marked - skip, 0) + (plan.splits - 1), plan.splits)

        def step(n, state):
            bits, carry = state
            block, part = 32 * i + lax.population_count((bits & -bits) - 1), lax.rem(n, plan.parts)
            carry = body(block * plan.parts + part, carry)
            rest = functools.reduce(lambda bits, _: drop(_, bits), range(plan.splits), bits)
            return jnp.where(part == plan.parts - 1, rest, bits), carry

        _, carry = lax.fori_loop(0, mine * plan.parts, step, (lax.fori_loop(0, skip, drop, bits), carry))
        return skip + plan.splits * mine - marked, carry

    return lax.fori_loop(0, words_ref.shape[0], word, (split, carry))[1]


def _weights(ref, plan: WalkPlan, i, j, shape):
    """Part (i, j) of the weight, cut into parts of ``shape``, in either layout."""
    rows, columns = shape
    if len(ref.shape) == 2:
        return ref.at[pl.ds(i * rows, rows), pl.ds(j * columns, columns)]
    down, across = plan.block[0] // rows, plan.block[1] // columns
    i_in, j_in = lax.rem(i, down) * rows, lax.rem(j, across) * columns
    return ref.at[lax.div(j, across), lax.div(i, down), pl.ds(i_in, rows), pl.ds(j_in, columns)]


def _rows(plan: WalkPlan, tile):
    """The rows of a tile, and which of them lie before the end."""
    start = tile * plan.row_tile
    return pl.ds(start, plan.row_tile), start + jnp.arange(plan.row_tile, dtype=jnp.int32) < plan.rows


def _load(ref, inside):
    """Reads zeros past the last row."""
    return pltriton.load(ref, mask=jnp.broadcast_to(inside, ref.shape), other=0.0)


def _store(ref, values, inside):
    """Writes nothing past the last row."""
    pltriton.store(ref, values.astype(ref.dtype), mask=jnp.broadcast_to(inside[:, None], ref.shape))


def takes_single_products() -> bool:
    """Whether ``jax_default_matmul_precision`` lets one TF32 product stand for a product of float32."""
    chosen = jax.config.jax_default_matmul_precision  # pyrefly: ignore[missing-attribute]
    return chosen in (None, "default", "bfloat16", "BF16_BF16_F32", "TF32_TF32_F32")


def _dot(plan: WalkPlan, a, b, contracted):
    """The product in float32; for float32 operands at ``jax_default_matmul_precision``, as XLA's own product.

    The tensor cores multiply in TF32: one pass where the precision is not set or is TF32, else three passes, about as
    exact as float32.
    """
    precision = None
    if a.dtype == jnp.float32:
        passes = lax.DotAlgorithmPreset
        passes = passes.TF32_TF32_F32 if takes_single_products() else passes.TF32_TF32_F32_X3
        precision = lax.Precision.HIGHEST if plan.interpret else passes
    dimensions = (((contracted[0],), (contracted[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
