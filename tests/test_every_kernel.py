"""Every implementation of the block-sparse product through one suite, the TPU's and the GPU's in their interpreters."""

import itertools
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import products
import pytest
from jax.experimental.pallas import tpu as pltpu
from products import assert_matches, expected, problem, without_nan

from pallas_kernels.block_sparse import mosaic_tpu, mosaic_tpu_tiles, reference, triton, xla

# jax 0.11 and later warns wherever such a kernel is lowered; pytest resets the filter that the module sets.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


class Kernel(NamedTuple):
    """An implementation, how it is run here, and up to how many rows it never reads a block that no row keeps."""

    module: ModuleType
    options: dict[str, Any]
    skips_up_to: float = np.inf
    tolerance: float = 2e-5

    def problem(self, rows: int, **changes: Any) -> products.Problem:
        """With NaN wherever nothing may be read."""
        p = problem(rows, **changes)
        return p if rows <= self.skips_up_to else without_nan(p)

    def run(self, p: products.Problem, layout: str = "row-major") -> tuple[jax.Array, ...]:
        return products.run(p, self.module, layout=layout, **self.options)


# The interpreter of the TPU simulates memories and copies one by one: a copy is made at the last moment, and what is
# never written is NaN.
KERNELS = {
    "reference": Kernel(reference, {}, skips_up_to=0),
    "xla": Kernel(xla, {}, skips_up_to=16),
    "mosaic_tpu": Kernel(mosaic_tpu, {"interpret": pltpu.InterpretParams(uninitialized_memory="nan")}),
    "triton": Kernel(triton, {"interpret": True}, tolerance=1e-4),
    "triton-gpu": Kernel(triton, {"interpret": False}, tolerance=1e-4),
}
LAYOUTS = ("row-major", "block-major")
SIZES = list(itertools.product((1, 5, 16, 40, 70), ("float32", "bfloat16")))
CASES = {(*size, layout) for size in SIZES for layout in LAYOUTS}
IN_ONE_LAYOUT = {(*size, LAYOUTS[(i + i // 2) % 2]) for i, size in enumerate(SIZES)}
FAST = dict.fromkeys(("reference", "xla", "triton"), IN_ONE_LAYOUT) | {
    "mosaic_tpu": {
        (1, "float32", "row-major"),
        (5, "bfloat16", "block-major"),
        (16, "float32", "row-major"),
        (40, "bfloat16", "block-major"),
    },
}
"""All other cases are slow: interpreters take seconds for each, and ``test_kernels`` has both layouts of the rest."""


def param(name: str, *case: Any, slow: bool = False) -> Any:
    marks = [pytest.mark.gpu] * name.endswith("gpu") + [pytest.mark.slow] * slow
    return pytest.param(name, *case, marks=marks)


def each_kernel(*rows: int) -> Any:
    """Every kernel with each number of rows. For the TPU's kernels all numbers but the first are slow tests."""
    cases = [param(name, b, slow=name == "mosaic_tpu" and b != rows[0]) for name in KERNELS for b in rows]
    return pytest.mark.parametrize(("name", "rows"), cases)


@pytest.fixture(autouse=True)
def exact_products():
    """Without this a GPU takes one TF32 product for each float32 product."""
    with jax.default_matmul_precision("float32"):
        yield


@pytest.fixture(autouse=True)
def small_ring(monkeypatch) -> None:
    """The TPU's kernels take two float32 blocks an iteration and keep four under way: less code, a ring soon round."""
    monkeypatch.setattr(mosaic_tpu_tiles, "RING_BYTES", 8 * 128 * 128 * 4)


@pytest.mark.parametrize(
    ("name", "rows", "dtype", "layout"),
    [param(name, *case, slow=case not in FAST.get(name, CASES)) for name in KERNELS for case in sorted(CASES)],
)
def test_value_and_gradients(name, rows, dtype, layout):
    kernel = KERNELS[name]
    p = kernel.problem(rows, dtype=dtype)
    assert_matches(p, kernel.run(p, layout), kernel.tolerance)


@each_kernel(1, 17)
def test_all_gates_zero(name, rows):
    kernel = KERNELS[name]
    p = kernel.problem(rows)
    w = jnp.full_like(p.w, jnp.nan if rows <= kernel.skips_up_to else 1.0)
    for array in kernel.run(p._replace(gates=jnp.zeros_like(p.gates), w=w)):
        np.testing.assert_array_equal(array, 0)


@each_kernel(3, 20)
def test_all_gates_one_is_the_dense_product(name, rows):
    kernel = KERNELS[name]
    p = without_nan(kernel.problem(rows))
    y, dx, dw, _ = kernel.run(p._replace(gates=jnp.ones_like(p.gates)))
    x, w, dy = oracle.f64(p.x), oracle.f64(p.w), oracle.f64(p.dy)
    for actual, wanted in ((y, x @ w), (dx, dy @ w.T), (dw, x.T @ dy)):
        np.testing.assert_allclose(actual, wanted, atol=kernel.tolerance * np.abs(wanted).max())


@each_kernel(0)
def test_no_rows(name, rows):
    p = without_nan(problem(2))
    y, dx, dw, dgates = KERNELS[name].run(products.Problem(p.x[:rows], p.w, p.gates[:rows], p.dy[:rows]))
    assert (y.size, dx.size, dgates.size) == (0, 0, 0)
    np.testing.assert_array_equal(dw, 0)


@each_kernel(2, 6)
@pytest.mark.parametrize("transform", ["scan", "vmap"])
def test_under_transformations(name, rows, transform):
    kernel = KERNELS[name]
    p = kernel.problem(rows)
    x, gates = (a.reshape(2, rows // 2, *a.shape[1:]) for a in (p.x, p.gates))
    product = lambda x, gates: kernel.module.forward(x, p.w, gates, **kernel.options)  # noqa: E731
    if transform == "scan":
        y = jax.jit(lambda: jax.lax.scan(lambda c, a: (c, product(*a)), 0, (x, gates))[1])()
    else:
        y = jax.jit(jax.vmap(product))(x, gates)
    np.testing.assert_allclose(y.reshape(rows, -1), expected(p)[0], atol=1e-3)
