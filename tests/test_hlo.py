"""Counts read from compiled programs, against programs small enough to count by hand."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.pod import hlo, hlo_counts


def parse(text):
    return hlo.parse(text)


def counted(text):
    return {kind: tuple(found) for kind, found in hlo_counts.collectives(parse(text)).items()}


def compiled(function, shape, in_specs, out_specs):
    """Text of ``function`` under shard_map on 4 x 2 CPU devices."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:8])
    spread = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, in_specs))
    return jax.jit(spread).lower(x).compile().as_text()


ROWS = P(("data", "model"))
"""Of 8 devices each has [2, 8] of [16, 8]: 64 bytes."""
MESSAGES = {
    "all-reduce": (lambda x: lax.psum(x, "data"), P("model"), (1, 64, 2 * 64 * 3 / 4)),
    "all-gather": (lambda x: lax.all_gather(x, "model", tiled=True), P("data"), (1, 64, 64)),
    "reduce-scatter": (
        lambda x: lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True),
        P("model", "data"),
        (1, 64, 48),
    ),
    "all-to-all": (
        lambda x: lax.all_to_all(x, "data", split_axis=1, concat_axis=0, tiled=True),
        P("model", "data"),
        (1, 64, 48),
    ),
    "collective-permute": (lambda x: lax.ppermute(x, "data", [(i, (i + 1) % 4) for i in range(4)]), ROWS, (1, 64, 64)),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_one_message_of_each_kind(kind):
    function, out_specs, expected = MESSAGES[kind]
    assert counted(compiled(function, (16, 8), ROWS, out_specs)) == {kind: expected}


def test_messages_in_loops_count_as_often_as_these_run():
    def inner(x, _):
        return lax.psum(jnp.sin(x), "data"), None

    def outer(x, _):
        x = lax.all_gather(lax.scan(inner, x, length=3)[0][:1], "model", tiled=True)
        return x, None

    def function(x):
        return lax.psum(lax.scan(outer, x, length=5)[0], ("data", "model"))

    found = counted(compiled(function, (16, 8), ROWS, P()))
    # 15 in the inner loop over 4 devices and one behind the loops over 8; one row of 32 bytes in the outer loop.
    assert found == {
        "all-reduce": (16, 16 * 64, 15 * 2 * 64 * 3 / 4 + 2 * 64 * 7 / 8),
        "all-gather": (5, 5 * 32, 5 * 32),
    }


def test_several_arrays_in_one_message():
    def function(x):
        return lax.psum((x, x[0].astype(jnp.bfloat16)), "data")

    text = compiled(function, (16, 8), ROWS, (P("model"), P("model")))
    # A CPU may add up bfloat16 as float32.
    assert counted(text)["all-reduce"][1] in (64 + 16, 64 + 32)


PROGRAM = (Path(__file__).parent / "tpu_program.hlo").read_text()
"""In the form of a program for a TPU: what it has in VMEM is in space S(1), counters are in S(6)."""


def test_an_operand_may_be_one_array_of_a_result():
    """As libtpu 0.0.50 writes it."""
    text = """HloModule step, num_partitions=2

ENTRY %main (p: f32[8]) -> f32[4] {
  %p = f32[8]{0} parameter(0)
  %two = (f32[8]{0}, f32[4]{0}) custom-call(%p), custom_call_target="x"
  ROOT %sum = f32[4]{0} all-reduce(%two#1), replica_groups={{0,1}}, to_apply=%add
}
"""
    assert counted(text) == {"all-reduce": (1, 16, 16.0)}


def test_a_program_in_the_form_of_the_tpu_compiler():
    program = hlo.parse(PROGRAM)
    assert hlo.executions(program) == {"main": 1, "body": 10, "rows_of_a_table": 1}
    # 512 bytes ten times between 2 of 4 devices; 128 bytes gathered once, although two fusions name it.
    assert counted(PROGRAM) == {"all-reduce": (10, 5120, 5120), "all-gather": (1, 128, 384)}
    assert hlo_counts.kernels(program) == [hlo_counts.Kernel(10, 4096, 1024)]
    # Of HBM: b read, 8 rows of the table read and written, one slice of 512 bytes read and one written in every step,
    # the whole stack copied at the end.
    assert hlo_counts.hbm_bytes(program) == 128 + 2 * 512 + 10 * (512 + 512) + 2 * 5120


def test_loops_without_a_fixed_end_are_refused():
    with pytest.raises(ValueError, match=r"How often the loop while\.1 runs cannot be read"):
        counted(PROGRAM.replace("direction=LT", "direction=NE"))


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("module @jit_step {\n}\n")
    with pytest.raises(ValueError, match="type q7"):
        parse(PROGRAM.replace("f32[8,4]", "q7[8,4]"))


def test_bytes_of_memory_on_a_real_program():
    """One elementwise step reads its operands and writes its result; a CPU has no other memory than that."""

    @functools.partial(jax.jit, donate_argnums=0)
    def add(x, y):
        return jnp.sin(x) + y

    shape = jax.ShapeDtypeStruct((128, 3), np.float32)
    program = parse(add.lower(shape, shape).compile().as_text())
    assert hlo_counts.hbm_bytes(program) == 3 * 128 * 3 * 4
