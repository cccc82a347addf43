"""The Triton kernels: interpreted, compiled ahead of time for an H200, and on a GPU where there is one (-m gpu)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from pallas_kernels import from_block_major, reference, to_block_major, triton

# Said by jax 0.11 and later wherever such a kernel is lowered; pytest resets the filter that the module sets.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

NAMES = ("y", "dx", "dw", "dgates")
TOLERANCE = 1e-4
"""Relative to the largest entry, for exact products of float32. A single TF32 product errs by more."""
# Row blocks, column blocks, and the shape of a block: blocks walked in parts, masks of several words, and results
# with so many tiles that no walk is shared.
SHAPES = ((3, 4, 32, 64), (3, 4, 128, 32), (2, 3, 256, 128), (140, 2, 16, 16), (2, 140, 16, 32))

interpreted_and_on_a_gpu = pytest.mark.parametrize(
    "interpret", [True, pytest.param(False, marks=pytest.mark.gpu)], ids=["interpreted", "compiled"]
)
each_layout = pytest.mark.parametrize("layout", ["row-major", "block-major"])


@pytest.fixture(autouse=True)
def exact_products():
    """Without it a GPU takes one TF32 product for each."""
    with jax.default_matmul_precision("float32"):
        yield


class Problem(NamedTuple):
    x: jax.Array
    w: jax.Array
    gates: jax.Array
    dy: jax.Array

    @property
    def block(self):
        return self.w.shape[0] // self.gates.shape[1], self.w.shape[1] // self.gates.shape[2]


def problem(rows, shape=SHAPES[0], dtype="float32") -> Problem:
    """Gates of both signs with an empty column, a full one and, from two rows on, a row that keeps nothing."""
    r, c, bk, bn = shape
    rng = np.random.default_rng([rows, *shape])
    gates = rng.normal(size=(rows, r, c)) * (rng.random((rows, r, c)) < 0.4)
    gates[:, :, -1] = rng.normal(size=(rows, r))
    gates[:, :, 0] = gates[:, 1, 1] = 0
    if rows > 1:
        gates[0] = 0
    normal = lambda *size: jnp.asarray(rng.normal(size=size), dtype)  # noqa: E731
    return Problem(normal(rows, r * bk), normal(r * bk, c * bn), jnp.asarray(gates, jnp.float32), normal(rows, c * bn))


def poisoned(p: Problem) -> Problem:
    """NaN in every block that no row keeps."""
    kept = np.asarray(p.gates != 0).any(0)
    bk, bn = p.block
    assert not kept.all()
    return p._replace(w=jnp.where(np.repeat(np.repeat(kept, bk, 0), bn, 1), p.w, jnp.nan))


@functools.partial(jax.jit, static_argnames=("module", "options"))
def everything(module, options, x, w, gates, dy):
    options = dict(options)
    dx, dgates = module.input_gradients(x, w, gates, dy, **options)
    return module.forward(x, w, gates, **options), dx, module.weight_gradient(x, w, gates, dy, **options), dgates


def run(p: Problem, interpret=True, layout="row-major"):
    """(y, dx, dw, dgates), dw row-major."""
    w = to_block_major(p.w, p.block) if layout == "block-major" else p.w
    y, dx, dw, dgates = everything(triton, (("interpret", interpret),), p.x, w, p.gates, p.dy)
    assert (y.dtype, dx.dtype, dw.dtype, dgates.dtype) == (p.x.dtype, p.x.dtype, w.dtype, p.gates.dtype)
    assert (y.shape, dx.shape, dw.shape, dgates.shape) == (p.dy.shape, p.x.shape, w.shape, p.gates.shape)
    return y, dx, from_block_major(dw) if layout == "block-major" else dw, dgates


def expected(p: Problem):
    return (oracle.matmul(p.x, p.w, p.gates), *oracle.matmul_gradients(p.x, p.w, p.gates, p.dy))


def assert_matches(actual, wanted):
    for name, a, b in zip(NAMES, actual, wanted, strict=True):
        scale = max(np.abs(b).max(), 1.0)
        np.testing.assert_allclose(oracle.f64(a), b, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def assert_as_exact_as_the_reference(p: Problem, actual):
    allowed = everything(reference, (), *p)
    for name, a, b, c in zip(NAMES, actual, allowed, expected(p), strict=True):
        error, limit = (np.abs(oracle.f64(v) - c).max() for v in (a, b))
        assert error <= 1.5 * limit + 1e-5 * np.abs(c).max(), name


# Values and gradients, with NaN wherever nothing may be read ----------------------------------------------------------


@interpreted_and_on_a_gpu
@each_layout
@pytest.mark.parametrize("rows", [1, 5, 16, 40, 70])
def test_value_and_gradients(rows, layout, interpret):
    p = problem(rows)
    actual = run(poisoned(p), interpret, layout)
    assert_matches(actual, expected(p))
    assert not np.any(np.asarray(actual[3])[np.asarray(p.gates) == 0])


@interpreted_and_on_a_gpu
@each_layout
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_bfloat16_errs_no_more_than_the_reference(rows, layout, interpret):
    p = problem(rows, dtype="bfloat16")
    assert_as_exact_as_the_reference(p, run(poisoned(p), interpret, layout))


@interpreted_and_on_a_gpu
@pytest.mark.parametrize(
    ("shape", "rows", "layout"),
    [
        (SHAPES[1], 1, "block-major"),
        (SHAPES[1], 40, "row-major"),
        (SHAPES[2], 1, "row-major"),
        (SHAPES[2], 16, "block-major"),
        (SHAPES[2], 40, "block-major"),
        (SHAPES[3], 1, "block-major"),
        (SHAPES[3], 5, "row-major"),
        (SHAPES[4], 1, "row-major"),
        (SHAPES[4], 17, "block-major"),
    ],
)
def test_other_shapes(shape, rows, layout, interpret):
    p = problem(rows, shape)
    assert_matches(run(poisoned(p), interpret, layout), expected(p))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 5, 16, 40, 70, 300])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_combination_on_a_gpu(shape, rows, dtype):
    p = problem(rows, shape, dtype)
    for layout in ("row-major", "block-major"):
        actual = run(poisoned(p), False, layout)
        assert_matches(actual, expected(p)) if dtype == "float32" else assert_as_exact_as_the_reference(p, actual)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [16, 300])
def test_products_on_a_gpu_are_as_exact_as_asked_for(rows):
    """TF32 has 10 bits behind the point: errors near 2**-11."""
    p = problem(rows)
    exact = run(p, False)
    with jax.default_matmul_precision(None):
        fast = run(p, False)
    for name, a, b, wanted in zip(NAMES, exact, fast, expected(p), strict=True):
        small, large = (np.abs(oracle.f64(v) - wanted).max() / np.abs(wanted).max() for v in (a, b))
        assert small < TOLERANCE < large < 4e-3, name


@interpreted_and_on_a_gpu
@pytest.mark.parametrize("rows", [1, 20])
def test_all_gates_zero(rows, interpret):
    p = problem(rows)
    for array in run(poisoned(p._replace(gates=jnp.zeros_like(p.gates))), interpret):
        np.testing.assert_array_equal(array, 0)


@interpreted_and_on_a_gpu
@pytest.mark.parametrize("rows", [1, 20])
def test_all_gates_one_is_the_dense_product(rows, interpret):
    p = problem(rows)
    y, dx, dw, _ = run(p._replace(gates=jnp.ones_like(p.gates)), interpret)
    x, w, dy = oracle.f64(p.x), oracle.f64(p.w), oracle.f64(p.dy)
    for actual, wanted in ((y, x @ w), (dx, dy @ w.T), (dw, x.T @ dy)):
        np.testing.assert_allclose(actual, wanted, atol=TOLERANCE * np.abs(wanted).max())


def test_no_rows():
    p = problem(2)
    y, dx, dw, dgates = run(Problem(p.x[:0], p.w, p.gates[:0], p.dy[:0]))
    assert (y.size, dx.size, dgates.size) == (0, 0, 0)
    np.testing.assert_array_equal(dw, 0)


@interpreted_and_on_a_gpu
@pytest.mark.parametrize("rows", [1, 3])
def test_vmap(rows, interpret):
    p = problem(2 * rows)
    x, gates = (a.reshape(2, rows, *a.shape[1:]) for a in (p.x, p.gates))
    y = jax.jit(jax.vmap(functools.partial(triton.forward, interpret=interpret), (0, None, 0)))(x, p.w, gates)
    np.testing.assert_allclose(y.reshape(2 * rows, -1), expected(p)[0], atol=1e-3)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "dtype", "named"),
    [
        ((24, 32), "float32", "24 x 32"),
        ((32, 8), "float32", "32 x 8"),
        ((1, 32), "bfloat16", "1 x 32"),
        ((32, 32), "float16", "float16"),
    ],
)
@each_layout
def test_what_the_kernels_cannot_do_is_refused_in_a_sentence(block, dtype, named, layout):
    x, w, gates = (
        jnp.zeros((2, 2 * block[0]), dtype),
        jnp.zeros((2 * block[0], 3 * block[1]), dtype),
        jnp.ones((2, 2, 3)),
    )
    w = to_block_major(w, block) if layout == "block-major" else w
    for refuse in (triton.check, triton.forward):
        with pytest.raises(ValueError, match=rf'{named}.*implementation="xla"\.'):
            refuse(x, w, gates)


# Compilation without a GPU --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 16, 70])
def test_the_kernels_lower_for_cuda(rows, dtype):
    p = problem(rows, dtype=dtype)
    # jax 0.11 and later asks for a device to lower a Triton kernel for.
    device = getattr(jax.sharding, "AbstractDevice", None)
    chip = {} if device is None else {"abstract_device": device("NVIDIA H200", 132, "cuda")}
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), **chip)):
        text = everything.trace(triton, (), *p).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton") >= 3


@pytest.fixture(scope="module")
def compiled_ahead_of_time(compile_for_a_gpu) -> dict[tuple, dict]:
    """What ``aot_gpu.py`` found out, by (function, dtype, rows, layout, precision)."""
    keys = ("function", "dtype", "rows", "layout", "precision")
    return {tuple(kernel[key] for key in keys): kernel for kernel in compile_for_a_gpu("aot_gpu.py")}


def test_every_kernel_compiles_for_an_h200_without_spills(compiled_ahead_of_time):
    assert len(compiled_ahead_of_time) == 3 * (2 * (5 + 2) + 2)
    for case, kernel in compiled_ahead_of_time.items():
        assert kernel["target"] == "sm_90a", case
        assert kernel["spilled_bytes"] == 0, case


def test_compiled_kernels_use_tensor_cores_and_wide_loads(compiled_ahead_of_time):
    for (function, dtype, rows, layout, _), kernel in compiled_ahead_of_time.items():
        case = f"{function} {dtype} {rows} {layout}: {kernel}"
        if function == "forward" and rows == 1:
            assert kernel["kernel"] == "matvec_kernel", case
            assert kernel["mma"] == kernel["wgmma"] == 0, case
        else:
            assert kernel["mma"] + kernel["wgmma"] > 0, case
        if rows >= 64:
            assert kernel["wgmma"] > 0, case
        assert kernel["wide_loads"] > 0, case
        assert kernel["narrow_loads"] <= 8, case


def test_products_of_float32_take_one_pass_unless_more_is_asked_for(compiled_ahead_of_time):
    """One TF32 product as XLA's dense one; three of them where ``jax_default_matmul_precision`` is "float32"."""
    for function in ("forward", "input_gradients", "weight_gradient"):
        for rows in (16, 64):
            fast, exact = (
                compiled_ahead_of_time[function, "float32", rows, "row-major", precision]
                for precision in (None, "float32")
            )
            assert exact["mma"] + exact["wgmma"] == 3 * (fast["mma"] + fast["wgmma"]), (function, rows)
