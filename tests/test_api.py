"""How the block-sparse product is wired: by platform when it is lowered, under vmap, shard_map and export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import Mesh, PartitionSpec

from pallas_kernels import block_sparse_matmul, to_block_major
from pallas_kernels.block_sparse import mosaic_tpu
from pallas_kernels.block_sparse.api import _choose

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
P = PartitionSpec
TOLERANCE = 2e-4
cpu_only = pytest.mark.skipif(jax.default_backend() != "cpu", reason="describes a machine without accelerators")


def problem(rows=4, *, r=2, c=4, block=128, dtype="float32"):
    """x, w, gates and a cotangent."""
    rng = np.random.default_rng([rows, r, c])
    gates = rng.normal(size=(rows, r, c)) * (rng.random((rows, r, c)) < 0.4)
    return (
        jnp.asarray(rng.normal(size=(rows, r * block)), dtype),
        jnp.asarray(rng.normal(size=(r * block, c * block)), dtype),
        jnp.asarray(gates, jnp.float32),
        jnp.asarray(rng.normal(size=(rows, c * block)), dtype),
    )


def value_and_gradients(x, w, gates, dy):
    y, pull = jax.vjp(block_sparse_matmul, x, w, gates)
    return y, *pull(dy)


def expected(x, w, gates, dy):
    return (oracle.matmul(x, w, gates), *oracle.matmul_gradients(x, w, gates, dy))


def assert_matches(actual, wanted):
    for name, a, b in zip(("y", "dx", "dw", "dgates"), actual, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * max(np.abs(b).max(), 1.0), err_msg=name)


# By platform ----------------------------------------------------------------------------------------------------------


def chip_of(platform):
    """A mesh context: jax 0.11 and later asks for a device to lower a Triton kernel for."""
    device = getattr(jax.sharding, "AbstractDevice", None)
    chip = {} if device is None else {"abstract_device": device("NVIDIA H200", 132, "cuda")}
    return jax.sharding.use_abstract_mesh(
        jax.sharding.AbstractMesh(
            (1, 1),
            ("data", "model"),
            axis_types=(jax.sharding.AxisType.Auto,) * 2,
            **(chip if platform == "cuda" else {}),
        )
    )


def lowered_for(platform, *, block=128, dtype="float32") -> str:
    arguments = problem(block=block, dtype=dtype)
    with chip_of(platform):
        traced = jax.jit(value_and_gradients).trace(*arguments)
        return traced.lower(lowering_platforms=(platform,)).as_text()


@cpu_only
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_platform_gets_its_kernel_when_the_program_is_lowered_for_it(dtype):
    tpu, cuda, cpu = (lowered_for(platform, dtype=dtype) for platform in ("tpu", "cuda", "cpu"))
    assert tpu.count("tpu_custom_call") == 3
    assert "triton" not in tpu
    assert cuda.count("triton") >= 3
    assert "tpu_custom_call" not in cuda
    assert "custom_call" not in cpu


@cpu_only
def test_blocks_that_a_kernel_does_not_take_go_through_xla():
    for platform, kernel in (("tpu", "tpu_custom_call"), ("cuda", "triton")):
        assert kernel not in lowered_for(platform, block=24)
    assert "triton" in lowered_for("cuda", block=32)
    assert "tpu_custom_call" not in lowered_for("tpu", block=32)


@pytest.mark.parametrize("leading", [(), (1, 1), (1, 4), (3, 2)])
@pytest.mark.parametrize("block", [4, 128])
def test_the_choice_does_not_hang_on_leading_dimensions(leading, block):
    x, w, gates, _ = problem(block=block)
    x, gates = (jnp.broadcast_to(array[0], (*leading, *array.shape[1:])) for array in (x, gates))
    chosen = [platform for platform, _ in _choose(None, x, w, gates)]
    assert chosen == (["default"] if block == 4 else ["tpu", "cuda", "default"])


@cpu_only
def test_an_exported_program_gives_the_same_here():
    arguments = problem()
    exported = jax.export.export(jax.jit(value_and_gradients))(*arguments)
    again = jax.export.deserialize(exported.serialize())
    assert_matches(again.call(*arguments), expected(*arguments))


@cpu_only
@pytest.mark.parametrize(
    ("platform", "kernel", "unchecked_calls"),
    [("tpu", "tpu_custom_call", ()), ("cuda", "@__gpu$xla.gpu.triton", ("__gpu$xla.gpu.triton",))],
)
def test_a_program_exported_for_an_accelerator_holds_its_kernel(platform, kernel, unchecked_calls):
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in unchecked_calls]
    with chip_of(platform):
        export = jax.export.export(jax.jit(value_and_gradients), platforms=(platform,), disabled_checks=checks)
        exported = jax.export.deserialize(export(*problem()).serialize())
    assert exported.platforms == (platform,)
    assert exported.mlir_module().count(kernel) == 3


@cpu_only
@pytest.mark.parametrize(("implementation", "kernels"), [("xla", 0), (None, 1)])
def test_one_export_serves_several_platforms(implementation, kernels):
    arguments = problem()[:3]
    product = jax.jit(functools.partial(block_sparse_matmul, implementation=implementation))
    checks = [jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    with chip_of("cuda"):
        export = jax.export.export(product, platforms=("cpu", "tpu", "cuda"), disabled_checks=checks)(*arguments)
    text = export.mlir_module()
    assert [text.count(kernel) for kernel in ("tpu_custom_call", "@__gpu$xla.gpu.triton")] == [kernels] * 2
    np.testing.assert_allclose(export.call(*arguments), oracle.matmul(*arguments), atol=1e-3)


@cpu_only
def test_a_fault_of_a_kernel_shows_on_its_own_platform_alone(monkeypatch):
    def broken(*arrays):
        raise TypeError("what another jax does not take")

    monkeypatch.setattr(mosaic_tpu, "forward", broken)
    x, w, gates, _ = problem(3)
    np.testing.assert_allclose(block_sparse_matmul(x, w, gates), oracle.matmul(x, w, gates), atol=1e-3)
    traced = jax.jit(block_sparse_matmul).trace(x, w, gates)
    assert "custom_call" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    with pytest.raises(TypeError, match="another jax"):
        traced.lower(lowering_platforms=("tpu",))


# vmap -----------------------------------------------------------------------------------------------------------------


def while_loops(function, *arguments) -> int:
    return jax.jit(function).lower(*arguments).as_text().count("stablehlo.while")


def test_mapped_examples_are_rows_of_one_product():
    x, w, gates, _ = problem(60, block=16)
    rows = functools.partial(block_sparse_matmul, implementation="xla")
    mapped = jax.vmap(jax.vmap(rows, (0, None, 0)), (1, None, 1))
    x3, gates3 = x.reshape(3, 20, -1), gates.reshape(3, 20, *gates.shape[1:])
    y = jax.jit(mapped)(x3, w, gates3)
    np.testing.assert_allclose(y, oracle.matmul(x, w, gates).reshape(3, 20, -1).swapaxes(0, 1), atol=1e-3)
    assert while_loops(mapped, x3, w, gates3) == while_loops(rows, x, w, gates)


def test_a_mapped_weight_alone():
    x, w, gates, dy = problem(3, block=16)
    weights = jnp.stack([w, -2 * w])
    total = lambda w: (jax.vmap(block_sparse_matmul, (None, 0, None))(x, w, gates) * dy[None]).sum()  # noqa: E731
    value, gradient = jax.jit(jax.value_and_grad(total))(weights)
    y, _, dw, _ = expected(x, w, gates, dy)
    np.testing.assert_allclose(value, -(y * oracle.f64(dy)).sum(), rtol=1e-4)
    np.testing.assert_allclose(gradient, np.stack([dw, dw]), atol=1e-3)


def test_mapped_gates_alone():
    x, w, gates, _ = problem(3, block=16)
    y = jax.vmap(block_sparse_matmul, (None, None, 0))(x, w, jnp.stack([gates, 3 * gates]))
    wanted = oracle.matmul(x, w, gates)
    np.testing.assert_allclose(y, np.stack([wanted, 3 * wanted]), atol=1e-3)


# shard_map ------------------------------------------------------------------------------------------------------------


def mesh(data, model):
    return Mesh(np.array(jax.devices()[: data * model]).reshape(data, model), ("data", "model"))


needs_devices = pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")


@needs_devices
@pytest.mark.parametrize("rows", [4, 40])
@pytest.mark.parametrize("layout", ["row-major", "block-major"])
def test_rows_and_block_columns_sharded_over_devices(rows, layout):
    """With the types of shard_map checked, as by default; gradients of what is shared are summed over devices."""
    x, w, gates, dy = problem(rows, block=16)
    laid_out = to_block_major(w, (16, 16)) if layout == "block-major" else w
    specs = (
        P("data"),
        P("model") if layout == "block-major" else P(None, "model"),
        P("data", None, "model"),
        P("data", "model"),
    )
    product = jax.shard_map(block_sparse_matmul, mesh=mesh(2, 2), in_specs=specs[:3], out_specs=specs[3])
    y, pull = jax.vjp(jax.jit(product), x, laid_out, gates)
    dx, dw, dgates = pull(dy)
    if layout == "block-major":
        dw = dw.transpose(1, 2, 0, 3).reshape(w.shape)
    assert_matches((y, dx, dw, dgates), expected(x, w, gates, dy))


@needs_devices
def test_gradients_inside_of_shard_map():
    x, w, gates, dy = problem(8, block=16)
    specs = (P("data"), P(), P("data"), P("data"))
    function = jax.shard_map(
        value_and_gradients, mesh=mesh(4, 1), in_specs=specs, out_specs=(P("data"), P("data"), P(), P("data"))
    )
    assert_matches(jax.jit(function)(x, w, gates, dy), expected(x, w, gates, dy))


@needs_devices
@pytest.mark.parametrize("rows", [1, 24])
def test_unchecked_shard_map(rows):
    x, w, gates, _ = problem(rows, block=16)
    function = jax.shard_map(
        block_sparse_matmul,
        mesh=mesh(1, 4),
        in_specs=(P(), P(None, "model"), P(None, None, "model")),
        out_specs=P(None, "model"),
        check_vma=False,
    )
    np.testing.assert_allclose(jax.jit(function)(x, w, gates), oracle.matmul(x, w, gates), atol=1e-3)


# On a GPU, through all layers of the wiring ---------------------------------------------------------------------------


def scanned(product, x, w, gates):
    steps = tuple(array.reshape(2, -1, *array.shape[1:]) for array in (x, gates))
    y = jax.lax.scan(lambda carry, step: (carry, product(step[0], w, step[1])), 0, steps)[1]
    return y.reshape(x.shape[0], -1)


def sharded(product, x, w, gates):
    specs = (P("data"), P(None, "model"), P("data", None, "model"))
    return jax.shard_map(product, in_specs=specs, out_specs=P("data", "model"))(x, w, gates)


def transformed(transform, implementation):
    @jax.jit
    def value_and_gradients(x, w, gates, dy):
        product = functools.partial(block_sparse_matmul, implementation=implementation)
        y, pull = jax.vjp(functools.partial(transform, product), x, w, gates)
        return y, *pull(dy)

    return value_and_gradients


each_transform = pytest.mark.parametrize("transform", [scanned, sharded])


@pytest.mark.gpu
@each_transform
@pytest.mark.parametrize("rows", [4, 80])
def test_the_triton_product_and_its_gradients_on_a_gpu(transform, rows):
    arguments = problem(rows)
    with jax.default_matmul_precision("float32"), jax.set_mesh(mesh(1, 1)):
        actual = transformed(transform, "triton")(*arguments)
    assert_matches(actual, expected(*arguments))


@cpu_only
@each_transform
def test_the_same_lowers_for_a_gpu(transform):
    with chip_of("cuda"):
        traced = transformed(transform, None).trace(*problem())
        assert traced.lower(lowering_platforms=("cuda",)).as_text().count("@__gpu$xla.gpu.triton") == 3
