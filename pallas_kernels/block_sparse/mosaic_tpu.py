"""Pallas kernels for TPUs (Mosaic): forward, and the gradients of x and gates in one pass over the kept blocks.

XLA has no product that takes the blocks of a weight from a list known only at run time; these kernels do. ``w`` stays
in HBM. A sorted list of the blocks that some row keeps drives a ring of asynchronous copies into VMEM, several blocks
per iteration, and every block is multiplied when it has arrived:

    forward           y[:, c] += gates[:, r, c] * (x[:, r] @ w[r, c])
    dx and dgates     q = dy[:, c] @ w[r, c]^T;  dx[:, r] += gates[:, r, c] * q;  dgates[:, r, c] = <x[:, r], q>

The same two kernels serve one row and thousands: the grid runs over tiles of rows and groups of output blocks, and
every grid step walks its own part of the list. A block that no row keeps is on no list, so it is never copied.

Bytes: each kept block once for every tile of at most 512 rows; x, gates and the output once.
Numerics: the gate is applied in float32 after the dot, sums are kept in float32 and cast once. The precision of a
float32 dot follows ``jax_default_matmul_precision``, as every product on a TPU does: unset, one bfloat16 pass.
Limits: see ``check``. ``vmap`` turns a call into a loop over examples that reads the weight again for each: fold
mapped rows into the leading dimension instead.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.block_sparse.mosaic_tpu_tiles import (
    LANES,
    RingPlan,
    block_at,
    columns,
    dot,
    from_lanes,
    gate_column,
    kept_list,
    lane_window,
    pad_rows,
    plan_tiles,
    to_lanes,
)
from pallas_kernels.block_sparse.mosaic_tpu_weights import weight_gradient
from pallas_kernels.layout import block_shape
from pallas_kernels.mesh_axes import result
from pallas_kernels.sizes import is_known

__all__ = ["check", "forward", "input_gradients", "weight_gradient"]

MAX_BLOCKS = 65_536
"""Blocks of one weight. Their list has two int32 for each, which is half of the 1 MiB of SMEM."""
MAX_BLOCK_SIZE = 2**20
MAX_FEATURES = 2**17
CHUNK_ROWS = 256
"""Rows of one dot: the result of more rows is far too large for the vector registers."""


def check(x, w, gates) -> None:
    """Raises ValueError for arguments that fit each other but not these kernels.

    They take float32 or bfloat16, blocks of multiples of 128 in both dimensions, up to 2^20 weights a block, up to
    ``MAX_BLOCKS`` blocks and up to ``MAX_FEATURES`` features.
    """
    *_, num_r, num_c = gates.shape
    bk, bn = block_shape(w, gates)
    way_out = 'or choose implementation="xla".'
    if not is_known(*x.shape, *w.shape):
        raise ValueError(
            f"x has shape {x.shape} and w {w.shape} and the TPU kernels take sizes that are known when a program is "
            f"made; export one program for each, {way_out}"
        )
    for name, array in (("x", x), ("w", w)):
        if array.dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(
                f"{name} has dtype {array.dtype} and the TPU kernels take float32 and bfloat16; cast it, {way_out}"
            )
    if bk % LANES or bn % LANES:
        raise ValueError(
            f"w has blocks of {bk} x {bn} and the TPU kernels take multiples of {LANES} in both dimensions; "
            f"take another block size, {way_out}"
        )
    if bk * bn > MAX_BLOCK_SIZE:
        raise ValueError(
            f"w has blocks of {bk} x {bn} and the TPU kernels take up to {MAX_BLOCK_SIZE} weights a block; "
            f"take smaller blocks, {way_out}"
        )
    if num_r * num_c > MAX_BLOCKS:
        raise ValueError(
            f"w has {num_r} x {num_c} blocks and the scalar memory of a TPU holds a list of {MAX_BLOCKS}; "
            f"take larger blocks, {way_out}"
        )
    if max(num_r * bk, num_c * bn) > MAX_FEATURES:
        raise ValueError(
            f"w is {num_r * bk} x {num_c * bn} and the TPU kernels take up to {MAX_FEATURES} features on either side; "
            f"split it, {way_out}"
        )


def forward(x, w, gates, *, interpret=False):
    """y [b, N] in the dtype of ``x``; see ``reference.forward``. ``check`` has accepted the arguments."""
    rows, num_r, num_c = gates.shape
    bk, bn = block_shape(w, gates)
    if rows == 0:
        return jnp.zeros((0, num_c * bn), x.dtype)
    plan = plan_tiles(rows, num_c, w, (bk, bn), whole=x.shape[1], outputs=bn, lanes=num_r)
    starts, c, r = kept_list((gates != 0).any(0).T, plan.group)
    lanes = to_lanes(gates, (num_r, plan.group), plan.rows)
    (y,) = _call(
        functools.partial(_forward_kernel, plan=plan, shape=(bk, bn)),
        (starts, r, c),
        [(pad_rows(x, plan.rows), _whole(plan, x.shape[1])), (lanes, _lanes(plan, lanes))],
        w,
        [(result((plan.rows, num_c * bn), x.dtype, x), _window(plan, bn))],
        interpret,
    )
    return y[:rows]


def input_gradients(x, w, gates, dy, *, interpret=False):
    """dx [b, K] and dgates [b, R, C]; see ``reference.input_gradients``."""
    rows, num_r, num_c = gates.shape
    bk, bn = block_shape(w, gates)
    if rows == 0:
        return jnp.zeros_like(x), jnp.zeros_like(gates)
    plan = plan_tiles(rows, num_r, w, (bk, bn), whole=dy.shape[1], outputs=bk, inputs=bk, lanes=2 * num_c)
    starts, r, c = kept_list((gates != 0).any(0), plan.group)
    lanes = to_lanes(gates, (plan.group, num_c), plan.rows)
    dx, dgates = _call(
        functools.partial(_input_gradients_kernel, plan=plan, shape=(bk, bn), num_c=num_c),
        (starts, r, c),
        [
            (pad_rows(dy, plan.rows), _whole(plan, dy.shape[1])),
            (pad_rows(x, plan.rows), _window(plan, bk)),
            (lanes, _lanes(plan, lanes)),
        ],
        w,
        [
            (result((plan.rows, num_r * bk), x.dtype, x), _window(plan, bk)),
            (result(lanes.shape, jnp.float32, lanes), _lanes(plan, lanes)),
        ],
        interpret,
    )
    dgates = from_lanes(dgates, gates.shape, (plan.group, num_c))
    return dx[:rows], jnp.where(gates != 0, dgates, 0).astype(gates.dtype)


# Grid step (t, g) works on tile t of rows and group g of output blocks.


def _whole(plan: RingPlan, features: int):
    return pl.BlockSpec((plan.tile, features), lambda t, g, *_: (t, 0))


def _window(plan: RingPlan, width: int):
    return pl.BlockSpec((plan.tile, plan.group * width), lambda t, g, *_: (t, g))


def _lanes(plan: RingPlan, lanes):
    return pl.BlockSpec((1, plan.tile, lanes.shape[2]), lambda t, g, *_: (g, t, 0))


def _call(kernel, lists, inputs, w, outputs, interpret):
    """Runs a kernel over its grid; the kernel accumulates its first output in scratch memory, in float32."""
    plan = kernel.keywords["plan"]
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(lists),
            grid=(pl.cdiv(plan.rows, plan.tile), lists[0].shape[0] - 1),
            in_specs=[*(spec for _, spec in inputs), pl.BlockSpec(memory_space=pl.ANY)],
            out_specs=[spec for _, spec in outputs],
            scratch_shapes=[
                pltpu.VMEM(outputs[0][1].block_shape, jnp.float32),
                pltpu.VMEM((plan.slots, plan.unroll, *kernel.keywords["shape"]), w.dtype),
                pltpu.SemaphoreType.DMA((plan.slots,)),
            ],
        ),
        out_shape=[shape for shape, _ in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=plan.vmem),
        interpret=interpret,
    )(*lists, *(array for array, _ in inputs), w)


def _walk(lists, w, buffer, semaphores, plan: RingPlan, shape, before, use):
    """Calls ``use(r, c, block)`` for every kept block of this group, and ``before()`` while the first are under way.

    The blocks come through a ring of ``slots``. A slot holds ``unroll`` blocks and has one semaphore, which counts
    bytes. So a block is certain to have arrived only after the wait for all blocks of its slot. Blocks that do not fill
    a slot come last, in a loop of their own, so that no block is copied twice.
    """
    starts, rows, cols = lists
    group = pl.program_id(1)
    begin = starts[group]
    count = starts[group + 1] - begin
    full = lax.div(count, plan.unroll)
    rest = count - full * plan.unroll

    def slot_of(step):
        return jnp.bitwise_and(step, plan.slots - 1)

    def copy(step, u):
        entry = begin + step * plan.unroll + u
        slot = slot_of(step)
        source = block_at(w, rows[entry], cols[entry], shape)
        return pltpu.make_async_copy(source, buffer.at[slot, u], semaphores.at[slot])

    def multiply(step, u):
        entry = begin + step * plan.unroll + u
        use(rows[entry], cols[entry], buffer.at[slot_of(step), u])

    def fetch(step):
        @pl.when(step < full)
        def _():
            for u in range(plan.unroll):
                copy(step, u).start()

        if plan.unroll > 1:

            @pl.when(step == full)
            def _():
                pl.loop(0, rest)(lambda u: copy(step, u).start())

    pl.loop(0, plan.slots - 1)(fetch)
    before()

    @pl.loop(0, full)
    def _(step):
        fetch(step + (plan.slots - 1))
        for u in range(plan.unroll):
            copy(step, u).wait()
        for u in range(plan.unroll):
            multiply(step, u)

    if plan.unroll > 1:
        pl.loop(0, rest)(lambda u: copy(full, u).wait())
        pl.loop(0, rest)(lambda u: multiply(full, u))


def _chunks(rows: int):
    return [slice(start, min(start + CHUNK_ROWS, rows)) for start in range(0, rows, CHUNK_ROWS)]


def _clear(ref, width: int):
    @pl.loop(0, ref.shape[1] // width)
    def _(i):
        ref[:, columns(i, width)] = jnp.zeros((ref.shape[0], width), ref.dtype)


def _store(ref, sums, width: int):
    @pl.loop(0, sums.shape[1] // width)
    def _(i):
        ref[:, columns(i, width)] = sums[:, columns(i, width)].astype(ref.dtype)


def _forward_kernel(starts, rows, cols, x, gates, w, y, sums, buffer, semaphores, *, plan, shape):
    bk, bn = shape
    first = pl.program_id(1) * plan.group

    def use(r, c, block):
        block = block[...]
        for chunk in _chunks(plan.tile):
            part = dot(x[chunk, columns(r, bk)], block)
            sums[chunk, columns(c - first, bn)] += part * gate_column(gates, chunk, r * plan.group + (c - first))

    _walk((starts, rows, cols), w, buffer, semaphores, plan, shape, lambda: _clear(sums, bn), use)
    _store(y, sums, bn)


def _input_gradients_kernel(
    starts, rows, cols, dy, x, gates, w, dx, dgates, sums, buffer, semaphores, *, plan, shape, num_c
):
    bk, bn = shape
    first = pl.program_id(1) * plan.group

    def clear():
        _clear(sums, bk)
        dgates[...] = jnp.zeros(dgates.shape, jnp.float32)

    def use(r, c, block):
        block = block[...]
        lane = (r - first) * num_c + c
        for chunk in _chunks(plan.tile):
            q = dot(dy[chunk, columns(c, bn)], block, transpose_b=True)
            sums[chunk, columns(r - first, bk)] += q * gate_column(gates, chunk, lane)
            product = jnp.sum(x[chunk, columns(r - first, bk)].astype(jnp.float32) * q, axis=1, keepdims=True)
            window, mine = lane_window(lane, product.shape[0])
            dgates[0, chunk, window] = jnp.where(mine, product, dgates[0, chunk, window])

    _walk((starts, rows, cols), w, buffer, semaphores, plan, shape, clear, use)
    _store(dx, sums, bk)
