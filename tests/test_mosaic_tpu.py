"""The TPU kernels: right in both interpreters of Pallas, and compiled for real chips without one."""

import dataclasses
import functools
import importlib.util
import itertools
import math
import os
from typing import NamedTuple

# libtpu reads this when it is loaded: there is no metadata server to ask about chips.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
# Nor is there a chip that two processes could fight over.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.experimental.pallas import tpu as pltpu
from products import assert_matches, problem, run, without_nan

from pallas_kernels.block_sparse import mosaic_tpu, mosaic_tpu_tiles, mosaic_tpu_weights

BLOCK = (128, 128)
SIMULATED = pltpu.InterpretParams(uninitialized_memory="nan")
"""Simulates memories and copies one by one; a copy is made at the last moment, what is never written is NaN."""


@pytest.fixture
def small_ring(monkeypatch) -> None:
    """Two float32 blocks an iteration, and four iterations under way: less code, and a ring that soon goes round."""
    monkeypatch.setattr(mosaic_tpu_tiles, "RING_BYTES", 8 * 128 * 128 * 4)


@pytest.fixture
def one_core(monkeypatch) -> None:
    """Every block column in one step, as on a chip with one core."""
    monkeypatch.setattr(mosaic_tpu_tiles, "num_cores", lambda: 1)


@pytest.fixture
def two_cores(monkeypatch) -> None:
    """Block columns in as many steps for each of two cores."""
    monkeypatch.setattr(mosaic_tpu_tiles, "num_cores", lambda: 2)


# In the interpreters --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_ring")
@pytest.mark.parametrize(
    ("rows", "grid", "dtype", "layout"),
    [
        (1, (2, 2), "float32", "block-major"),
        pytest.param(1, (3, 4), "bfloat16", "row-major", marks=pytest.mark.slow),
        pytest.param(40, (3, 4), "float32", "block-major", marks=pytest.mark.slow),
    ],
)
def test_value_and_gradients_in_the_other_interpreter(rows, grid, dtype, layout):
    p = problem(rows, grid=grid, dtype=dtype)
    assert_matches(p, run(p, mosaic_tpu, layout=layout, interpret=True))


@pytest.mark.usefixtures("small_ring", "two_cores")
@pytest.mark.parametrize(("rows", "dtype"), [(3, "float32"), pytest.param(40, "bfloat16", marks=pytest.mark.slow)])
def test_two_cores_share_the_columns(rows, dtype):
    p = problem(rows, dtype=dtype)
    assert_matches(p, run(p, mosaic_tpu, interpret=dataclasses.replace(SIMULATED, num_cores_or_threads=2)))


@functools.cache
def simulated_forward():
    """One function for all numbers of kept blocks, so that it is compiled once."""
    return jax.jit(functools.partial(mosaic_tpu.forward, interpret=SIMULATED))


@pytest.mark.usefixtures("small_ring", "one_core")
@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 27])
def test_a_ring_that_goes_round_with_any_number_left_over(kept):
    p = without_nan(problem(1, grid=(4, 7)))
    gates = np.zeros(28)
    gates[np.random.default_rng(kept).permutation(27)[:kept]] = np.arange(1, kept + 1)
    p = p._replace(gates=jnp.asarray(gates, jnp.float32).reshape(1, 4, 7))
    plan = mosaic_tpu_tiles.plan_tiles(1, 7, p.w, BLOCK, whole=512, outputs=128, lanes=4)
    assert (plan.unroll, plan.slots) == (2, 4)
    y = simulated_forward()(p.x, p.w, p.gates)
    np.testing.assert_allclose(y, oracle.matmul(p.x, p.w, p.gates), atol=1e-3)


@pytest.mark.usefixtures("one_core")
@pytest.mark.slow
def test_the_full_ring_goes_round():
    p = problem(2, grid=(10, 11), density=0.9)
    plan = mosaic_tpu_tiles.plan_tiles(2, 11, p.w, BLOCK, whole=1280, outputs=128, lanes=10)
    assert (plan.unroll, plan.slots) == (16, 4)
    assert (np.asarray(p.gates) != 0).any(0).sum() > 64
    assert_matches(p, run(p, mosaic_tpu, interpret=SIMULATED))


@pytest.mark.parametrize("layout", ["row-major", pytest.param("block-major", marks=pytest.mark.slow)])
def test_tiles_of_rows_and_of_blocks_with_ragged_edges(layout, monkeypatch):
    monkeypatch.setattr(mosaic_tpu_tiles, "TILE_ROWS", (16,))
    monkeypatch.setattr(mosaic_tpu_tiles, "TILE_BYTES", 200_000)
    monkeypatch.setattr(mosaic_tpu_weights, "TILE_FEATURES", 256)
    monkeypatch.setattr(mosaic_tpu_weights, "TILE_ROWS", 128)
    p = problem(136, grid=(3, 5))
    plan = mosaic_tpu_tiles.plan_tiles(136, 5, p.w, BLOCK, whole=384, outputs=128, lanes=3)
    assert plan.rows % plan.tile
    assert 1 < plan.group < 5
    assert 5 % plan.group
    assert_matches(p, run(p, mosaic_tpu, layout=layout, interpret=SIMULATED))


@pytest.mark.slow
def test_more_rows_than_one_dot_takes():
    p = problem(272, grid=(2, 3), density=0.6)
    assert mosaic_tpu_tiles.plan_tiles(272, 3, p.w, BLOCK, whole=256, outputs=128, lanes=2).tile > mosaic_tpu.CHUNK_ROWS
    assert_matches(p, run(p, mosaic_tpu, interpret=SIMULATED))


@pytest.mark.usefixtures("small_ring")
@pytest.mark.parametrize("layout", ["row-major", pytest.param("block-major", marks=pytest.mark.slow)])
def test_blocks_that_are_not_square(layout):
    p = problem(5, grid=(2, 3), block=(256, 128))
    assert_matches(p, run(p, mosaic_tpu, layout=layout, interpret=SIMULATED))


@pytest.mark.usefixtures("small_ring", "one_core")
@pytest.mark.parametrize("rows", [1, pytest.param(40, marks=pytest.mark.slow)])
def test_value_and_gradients_on_one_core(rows):
    p = problem(rows)
    assert_matches(p, run(p, mosaic_tpu, interpret=SIMULATED))


def moved_by_the_grid(spec, shape, grid) -> int:
    """Elements that a pipeline copies for one operand: a block whenever its place changes from one step to the next."""
    steps = [spec.index_map(*step) for step in np.ndindex(*grid)]
    moves = 1 + sum(before != after for before, after in itertools.pairwise(steps))
    assert len(spec.block_shape) == len(shape)
    return moves * math.prod(spec.block_shape)


@pytest.mark.usefixtures("small_ring", "one_core")
@pytest.mark.parametrize("name", ["forward", "input_gradients"])
@pytest.mark.parametrize(
    ("rows", "density", "dtype"), [(1, 0.5, "float32"), (3, 0.7, "bfloat16"), (40, 0.02, "float32")]
)
def test_the_bytes_of_the_kept_blocks_move_and_all_else_once(name, rows, density, dtype, monkeypatch):
    copies, calls = [], []
    make, call = pltpu.make_async_copy, pl.pallas_call

    class Counted(NamedTuple):
        copy: object
        bytes: int

        def start(self):
            jax.debug.callback(lambda: copies.append(self.bytes))
            self.copy.start()

        def wait(self):
            self.copy.wait()

    def counted(source, *others):
        return Counted(make(source, *others), math.prod(source.shape) * source.dtype.itemsize)

    def recorded(kernel, *, grid_spec, out_shape, **options):
        def run(*arrays):
            calls.append((grid_spec, arrays, out_shape))
            return call(kernel, grid_spec=grid_spec, out_shape=out_shape, **options)(*arrays)

        return run

    monkeypatch.setattr(pltpu, "make_async_copy", counted)
    monkeypatch.setattr(pl, "pallas_call", recorded)
    p = problem(rows, grid=(4, 7), density=density, dtype=dtype)
    arguments = p[:3] if name == "forward" else p
    jax.block_until_ready(jax.jit(functools.partial(getattr(mosaic_tpu, name), interpret=True))(*arguments))
    jax.effects_barrier()
    kept = (np.asarray(p.gates) != 0).any(0).sum()
    assert sum(copies) == kept * math.prod(BLOCK) * p.w.dtype.itemsize
    assert len(copies) == kept
    ((spec, arrays, outputs),) = calls
    # The lists are read before the first step; the weight stays where it is.
    lists, (*inputs, w) = arrays[: spec.num_scalar_prefetch], arrays[spec.num_scalar_prefetch :]
    assert sum(a.size for a in lists) == 2 + 2 * 4 * 7
    assert (w.shape, spec.in_specs[-1].memory_space) == (p.w.shape, pl.ANY)
    for own, array in zip((*spec.in_specs[:-1], *spec.out_specs), (*inputs, *outputs), strict=True):
        assert moved_by_the_grid(own, array.shape, spec.grid) == array.size


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("w", "gates", "dtype", "named"),
    [
        ((64 * 3, 128 * 4), (3, 4), "float32", "64 x 128.*multiples of 128"),
        ((128 * 3, 192 * 4), (3, 4), "float32", "128 x 192.*multiples of 128"),
        ((4, 3, 128, 64), (3, 4), "float32", "128 x 64.*multiples of 128"),
        ((128, 128), (1, 1), "float16", "float16.*bfloat16"),
        ((2048, 1024), (1, 1), "float32", "2048 x 1024.*1048576"),
        ((257 * 128, 256 * 128), (257, 256), "bfloat16", "257 x 256.*65536"),
        ((128, 1025 * 128), (1, 1025), "bfloat16", "131200.*131072"),
    ],
)
def test_what_does_not_suit_the_kernels_is_refused_in_a_sentence(w, gates, dtype, named):
    features = w[0] if len(w) == 2 else w[1] * w[2]
    arrays = (
        jax.ShapeDtypeStruct(shape, kind)
        for shape, kind in (((2, features), dtype), (w, dtype), ((2, *gates), "float32"))
    )
    with pytest.raises(ValueError, match=f'{named}.*implementation="xla"\\.'):
        mosaic_tpu.check(*arrays)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 16, 40, 5000])
def test_what_is_not_refused_has_a_plan(rows, dtype):
    for num_r, num_c, bk, bn in (
        (1, 1024, 128, 128),
        (1024, 1, 128, 128),
        (256, 256, 512, 512),
        (4, 8, 1024, 1024),
        (2, 128, 8192, 128),
        (128, 2, 128, 8192),
        (16, 256, 512, 384),
        (64, 40, 1536, 640),
    ):
        x, w, gates = (
            jax.ShapeDtypeStruct(shape, kind)
            for shape, kind in (
                ((rows, num_r * bk), dtype),
                ((num_r * bk, num_c * bn), dtype),
                ((rows, num_r, num_c), "float32"),
            )
        )
        mosaic_tpu.check(x, w, gates)
        for plan in (
            mosaic_tpu_tiles.plan_tiles(rows, num_c, w, (bk, bn), whole=num_r * bk, outputs=bn, lanes=num_r),
            mosaic_tpu_tiles.plan_tiles(
                rows, num_r, w, (bk, bn), whole=num_c * bn, outputs=bk, inputs=bk, lanes=2 * num_c
            ),
            mosaic_tpu_weights.cut(rows, w, gates),
        ):
            assert plan.vmem < 56 * 2**20


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("rows", [1, 16, 512])
@pytest.mark.parametrize("num_outputs", [1, 2, 13, 48])
def test_every_core_has_as_many_steps(cores, rows, num_outputs, monkeypatch):
    monkeypatch.setattr(mosaic_tpu_tiles, "num_cores", lambda: cores)
    w = jax.ShapeDtypeStruct((12 * 128, num_outputs * 128), "float32")
    plan = mosaic_tpu_tiles.plan_tiles(rows, num_outputs, w, BLOCK, whole=12 * 128, outputs=128, lanes=12)
    groups = -(-num_outputs // plan.group)
    assert groups % min(cores, num_outputs) == 0
    if rows <= 16:
        assert groups == min(cores, num_outputs)


# Compiled for chips ---------------------------------------------------------------------------------------------------

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "TPU7x": "tpu7x:2x2x1"}
# The kernels see v6e as they see v5e: one core, 128 MB of VMEM.
each_chip = pytest.mark.parametrize("chip", [pytest.param(c, marks=[pytest.mark.slow] * (c == "v6e")) for c in CHIPS])
needs_libtpu = pytest.mark.usefixtures("libtpu", "all_optimizations")


@pytest.fixture
def libtpu(no_compiler) -> None:
    if importlib.util.find_spec("libtpu") is None:
        no_compiler("The TPU compiler, libtpu, is not installed")


@functools.cache
def one_device(chip: str) -> jax.sharding.NamedSharding:
    device = topologies.get_topology_desc(CHIPS[chip], platform="tpu").devices[0]
    return jax.sharding.NamedSharding(jax.sharding.Mesh(np.array([device]), ("d",)), jax.sharding.PartitionSpec())


def compile_for(chip, function, rows, dtype, *, grid=(12, 48), block=BLOCK, layout="row-major", steps=()):
    """Compiles ``function(x, w, gates, dy)`` for one device; checks that it holds a kernel and no copy of ``w``."""
    (r, c), (bk, bn) = grid, block
    struct = functools.partial(jax.ShapeDtypeStruct, sharding=one_device(chip))
    w = struct((r * bk, c * bn) if layout == "row-major" else (c, r, *block), dtype)
    compiled = (
        jax.jit(function)
        .lower(
            struct((*steps, rows, r * bk), dtype),
            w,
            struct((*steps, rows, r, c), "float32"),
            struct((*steps, rows, c * bn), dtype),
        )
        .compile()
    )
    assert "tpu_custom_call" in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < w.size * w.dtype.itemsize / 2


def forward(x, w, gates, dy):
    return mosaic_tpu.forward(x, w, gates)


@needs_libtpu
@each_chip
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_compile(chip, dtype):
    for rows in (1, 64):
        compile_for(chip, forward, rows, dtype)
        compile_for(chip, mosaic_tpu.input_gradients, rows, dtype)
    compile_for(chip, mosaic_tpu.weight_gradient, 64, dtype)


@needs_libtpu
@pytest.mark.parametrize("chip", ["v5e", "TPU7x"])
def test_kernels_compile_for_block_major_weights(chip):
    for function in (forward, mosaic_tpu.input_gradients, mosaic_tpu.weight_gradient):
        compile_for(chip, function, 16, "bfloat16", layout="block-major")


@needs_libtpu
@pytest.mark.parametrize("chip", ["v5p", "TPU7x"])
def test_large_tiles_fit_the_smaller_memories(chip):
    for function in (forward, mosaic_tpu.input_gradients, mosaic_tpu.weight_gradient):
        compile_for(chip, function, 1024, "float32", grid=(32, 128))


@needs_libtpu
@pytest.mark.parametrize(("grid", "block"), [((1, 8), (8192, 128)), ((8, 1), (128, 8192))])
def test_long_blocks_fit_the_smaller_memories(grid, block):
    for function in (forward, mosaic_tpu.input_gradients, mosaic_tpu.weight_gradient):
        compile_for("v5p", function, 64, "float32", grid=grid, block=block)


@needs_libtpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("precision", ["high", "float32"])
def test_kernels_compile_at_any_precision_of_products(precision, dtype):
    with jax.default_matmul_precision(precision):
        for function in (forward, mosaic_tpu.input_gradients, mosaic_tpu.weight_gradient):
            compile_for("v5e", function, 16, dtype)


@needs_libtpu
def test_a_scan_makes_no_copy_of_the_weight():
    def steps(x, w, gates, dy):
        return jax.lax.scan(lambda c, a: (c, mosaic_tpu.forward(a[0], w, a[1])), 0, (x, gates))[1]

    compile_for("v5e", steps, 1, "float32", steps=(8,))
