"""The block-sparse product: every implementation against the oracle, through one suite."""

import functools
from typing import NamedTuple

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from pallas_kernels import block_sparse_matmul, from_block_major, to_block_major
from pallas_kernels.block_sparse import xla, xla_decode

pytestmark = pytest.mark.optimized

IMPLEMENTATIONS = ("reference", "xla")
ROWS = (1, 3, 16, 17, 70)
R, C, BK, BN = 3, 4, 10, 7
NEVER_KEPT = ((0, 0), (1, 0), (2, 0), (1, 2))
"""Blocks that no row keeps: the whole first column and one more."""
TOLERANCE = 2e-4

each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
each_layout = pytest.mark.parametrize("layout", ["row-major", "block-major"])


class Problem(NamedTuple):
    x: jax.Array
    w: jax.Array
    gates: jax.Array
    dy: jax.Array


def problem(rows, *, shape=(R, C, BK, BN), dtype="float32", seed=0, lead=None) -> Problem:
    """Gates of both signs with an empty column, a full column and, from two rows on, a row that keeps nothing."""
    r, c, bk, bn = shape
    rng = np.random.default_rng([seed, rows, *shape])
    gates = rng.normal(size=(rows, r, c)) * (rng.random((rows, r, c)) < 0.4)
    if (r, c) == (R, C):
        gates[:, :, 1] = rng.normal(size=(rows, r))
        for i, j in NEVER_KEPT:
            gates[:, i, j] = 0
    if rows > 1:
        gates[0] = 0
    lead = (rows,) if lead is None else lead
    return Problem(
        jnp.asarray(rng.normal(size=(*lead, r * bk)), dtype),
        jnp.asarray(rng.normal(size=(r * bk, c * bn)), dtype),
        jnp.asarray(gates.reshape(*lead, r, c), jnp.float32),
        jnp.asarray(rng.normal(size=(*lead, c * bn)), dtype),
    )


@functools.partial(jax.jit, static_argnames="implementation")
def value_and_gradients(x, w, gates, dy, implementation):
    """(y, dx, dw, dgates) with the cotangent dy."""
    y, vjp = jax.vjp(lambda *args: block_sparse_matmul(*args, implementation=implementation), x, w, gates)
    return (y, *vjp(dy))


def run(p: Problem, implementation, layout="row-major"):
    w = to_block_major(p.w, (BK, BN)) if layout == "block-major" else p.w
    y, dx, dw, dgates = value_and_gradients(p.x, w, p.gates, p.dy, implementation)
    assert (y.dtype, dx.dtype, dw.dtype, dgates.dtype) == (p.x.dtype, p.x.dtype, p.w.dtype, p.gates.dtype)
    assert dw.shape == w.shape
    return y, dx, from_block_major(dw) if layout == "block-major" else dw, dgates


def expected(p: Problem):
    return (oracle.matmul(p.x, p.w, p.gates), *oracle.matmul_gradients(p.x, p.w, p.gates, p.dy))


def assert_matches(actual, wanted):
    for name, a, b in zip(("y", "dx", "dw", "dgates"), actual, wanted, strict=True):
        scale = max(np.abs(b).max(), 1.0)
        np.testing.assert_allclose(np.asarray(a, np.float64), b, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def test_oracle_gradients_are_the_derivatives_of_its_product():
    p = problem(3, shape=(2, 2, 3, 2))
    arrays = oracle.f64({"x": p.x, "w": p.w, "gates": p.gates})
    support = arrays["gates"] != 0
    numeric = oracle.differences(
        lambda a: (oracle.matmul(a["x"], a["w"], a["gates"] * support) * oracle.f64(p.dy)).sum(), arrays
    )
    for name, analytic in zip(("x", "w", "gates"), oracle.matmul_gradients(p.x, p.w, p.gates, p.dy), strict=True):
        np.testing.assert_allclose(numeric[name], analytic, atol=1e-8)


@each_implementation
@each_layout
@pytest.mark.parametrize("rows", ROWS)
def test_value_and_gradients(implementation, layout, rows):
    p = problem(rows)
    actual = run(p, implementation, layout)
    assert_matches(actual, expected(p))
    assert not np.any(np.asarray(actual[3])[np.asarray(p.gates) == 0])
    if rows > 1:
        assert not np.any(actual[0][0])


@each_implementation
@pytest.mark.parametrize(
    ("rows", "shape"), [(3, (1, 1, 5, 3)), (17, (1, 3, 6, 1)), (3, (4, 1, 1, 9)), (17, (4, 1, 1, 9))]
)
def test_single_rows_and_columns_of_blocks(implementation, rows, shape):
    p = problem(rows, shape=shape, seed=1)
    assert np.any(p.gates)
    assert_matches(run(p, implementation), expected(p))


@each_implementation
@pytest.mark.parametrize("rows", [600, 2240])
def test_many_rows(implementation, rows):
    p = problem(rows)
    assert_matches(run(p, implementation), expected(p))


@each_layout
@pytest.mark.parametrize(("rows", "dtype"), [(1, "float32"), (8, "float32"), (8, "bfloat16")])
@pytest.mark.parametrize("name", ["forward", "input_gradients"])
def test_few_rows_on_a_cpu_make_no_copy_of_the_weight(name, rows, dtype, layout):
    p = problem(rows, shape=(4, 8, 64, 64), dtype=dtype)
    w = to_block_major(p.w, (64, 64)) if layout == "block-major" else p.w
    arguments = (p.x, w, p.gates, p.dy)[: 3 if name == "forward" else 4]
    compiled = jax.jit(getattr(xla, name)).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < w.nbytes / 2


@each_layout
@pytest.mark.parametrize("rows", ROWS)
def test_bfloat16_errs_no_more_than_the_reference(layout, rows):
    p = problem(rows, dtype="bfloat16")
    wanted = expected(p)
    actual, reference = run(p, "xla", layout), run(p, "reference")
    for name, a, b, c in zip(("y", "dx", "dw", "dgates"), actual, reference, wanted, strict=True):
        error, allowed = (np.abs(np.asarray(v, np.float64) - c).max() for v in (a, b))
        scale = np.abs(c).max()
        assert error <= 1.5 * allowed + 1e-5 * scale, name
        assert error <= 0.02 * scale, name


@each_implementation
@each_layout
@pytest.mark.parametrize("rows", [1, 17])
def test_all_gates_zero(implementation, layout, rows):
    p = problem(rows)
    for array in run(p._replace(gates=jnp.zeros_like(p.gates)), implementation, layout):
        np.testing.assert_array_equal(array, 0)


@each_implementation
@pytest.mark.parametrize("rows", [3, 17])
def test_all_gates_one_is_the_dense_product(implementation, rows):
    p = problem(rows)
    y, dx, dw, _ = run(p._replace(gates=jnp.ones_like(p.gates)), implementation)
    x, w, dy = oracle.f64(p.x), oracle.f64(p.w), oracle.f64(p.dy)
    for actual, wanted in ((y, x @ w), (dx, dy @ w.T), (dw, x.T @ dy)):
        np.testing.assert_allclose(actual, wanted, atol=TOLERANCE * np.abs(wanted).max())


@each_implementation
@pytest.mark.parametrize("rows", [3, 17])
def test_the_support_is_where_gates_are_not_zero_however_small(implementation, rows):
    p = problem(rows)
    gates = jnp.where(p.gates == 0, -0.0, jnp.sign(p.gates) * 1e-30)
    dgates = run(p._replace(gates=gates), implementation)[3]
    wanted = expected(p)[3]
    np.testing.assert_allclose(dgates, wanted, atol=TOLERANCE * np.abs(wanted).max())


# Blocks that nobody keeps are never read ------------------------------------------------------------------------------


def planted(p: Problem, value, kept=None) -> Problem:
    """``p`` with ``value`` in every weight of the blocks that no row keeps."""
    kept = np.asarray(p.gates != 0).reshape(-1, R, C).any(0) if kept is None else kept
    return p._replace(w=jnp.where(np.repeat(np.repeat(kept, BK, 0), BN, 1), p.w, value))


@each_layout
@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_in_a_block_that_no_row_keeps_reaches_nothing(layout, rows, dtype):
    p = problem(rows, dtype=dtype)
    poisoned = planted(p, jnp.nan)
    assert np.isnan(oracle.f64(poisoned.w)).reshape(R, BK, C, BN).any((1, 3)).sum() >= len(NEVER_KEPT)
    for a, b in zip(run(poisoned, "xla", layout), run(p, "xla", layout), strict=True):
        np.testing.assert_array_equal(a, b)
    for array in run(planted(p, jnp.inf), "xla", layout):
        assert np.isfinite(oracle.f64(array)).all()


@each_layout
def test_nan_stays_out_under_scan_and_leading_dimensions(layout):
    p = problem(12, lead=(3, 4))
    bad = planted(p, jnp.nan)
    w = to_block_major(bad.w, (BK, BN)) if layout == "block-major" else bad.w

    def total(x, w, gates):
        step = lambda c, xg: (c, block_sparse_matmul(*(xg[0], w, xg[1]), implementation="xla"))  # noqa: E731
        return (jax.lax.scan(step, 0, (x, gates))[1] * bad.dy).sum()

    _, gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(bad.x, w, bad.gates)
    dx, dw, dgates = gradients
    dw = from_block_major(dw) if layout == "block-major" else dw
    y = block_sparse_matmul(bad.x, w, bad.gates, implementation="xla")
    assert_matches((y, dx, dw, dgates), expected(p))


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    kept=hnp.arrays(bool, (5, R, C)),
    layout=hypothesis.strategies.sampled_from(["row-major", "block-major"]),
)
def test_any_pattern_of_kept_blocks(kept, layout):
    p = problem(5)
    gates = np.where(kept, np.random.default_rng(4).uniform(0.5, 2.0, kept.shape), 0)
    p = p._replace(gates=jnp.asarray(gates, jnp.float32))
    assert_matches(run(planted(p, jnp.nan, kept.any(0)), "xla", layout), expected(p))


@pytest.mark.parametrize("rows", [1, 4, 5, 16])
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_small_blocks_are_skipped_or_all_computed(rows, share):
    r, c, side = 4, 8, 32
    p = problem(rows, shape=(r, c, side, side))
    rng = np.random.default_rng(rows)
    kept = rng.permutation(np.arange(r * c) < share * r * c).reshape(r, c)
    gates = np.where(kept, rng.normal(size=(rows, r, c)), 0)
    p = p._replace(gates=jnp.asarray(gates, jnp.float32))
    assert bool(xla.pays_to_skip(kept.mean(), (side, side), p.w.dtype)) == (share < 0.5)
    wanted = expected(p)
    bad = p._replace(w=jnp.where(np.kron(kept, np.ones((side, side))) != 0, p.w, jnp.nan))
    assert_matches(value_and_gradients(*bad, "xla"), wanted)
    # The loops alone, for weights that are not laid out for them.
    y = jax.jit(xla_decode.forward)(bad.x, bad.w, bad.gates)
    np.testing.assert_allclose(oracle.f64(y), wanted[0], rtol=0, atol=TOLERANCE * np.abs(wanted[0]).max())


def test_large_blocks_and_bfloat16_are_always_skipped():
    for shape, dtype in (((128, 128), jnp.float32), ((32, 32), jnp.bfloat16)):
        assert xla.pays_to_skip(jnp.float32(1), shape, jnp.dtype(dtype)) is True


# Transformations ------------------------------------------------------------------------------------------------------


def loss(implementation, x, w, gates, dy):
    return (block_sparse_matmul(x, w, gates, implementation=implementation) * dy).sum()


@each_implementation
@pytest.mark.parametrize("lead", [(), (2, 3), (2, 3, 4)])
def test_leading_dimensions(implementation, lead):
    p = problem(int(np.prod(lead)), lead=lead)
    actual = run(p, implementation)
    assert actual[0].shape == (*lead, C * BN)
    assert_matches(actual, expected(p))


@each_implementation
def test_no_rows(implementation):
    p = problem(0)
    y, dx, dw, dgates = run(p, implementation)
    assert (y.shape, dx.shape, dgates.shape) == ((0, C * BN), p.x.shape, p.gates.shape)
    np.testing.assert_array_equal(dw, 0)


@each_implementation
def test_outside_jit(implementation):
    p = problem(3)
    y = block_sparse_matmul(p.x, p.w, p.gates, implementation=implementation)
    np.testing.assert_allclose(y, oracle.matmul(p.x, p.w, p.gates), atol=1e-3)


@each_implementation
@pytest.mark.parametrize("rows", [3, 17])
def test_vmap_over_inputs_and_gates(implementation, rows):
    p = problem(2 * rows, lead=(2, rows))
    mapped = jax.vmap(lambda x, gates: block_sparse_matmul(x, p.w, gates, implementation=implementation))
    np.testing.assert_allclose(jax.jit(mapped)(p.x, p.gates), oracle.matmul(p.x, p.w, p.gates), atol=1e-3)


@each_implementation
@pytest.mark.parametrize("rows", [3, 17])
def test_gradient_of_vmap_with_and_without_a_weight_each(implementation, rows):
    p = problem(2 * rows, lead=(2, rows))
    w = jnp.stack([p.w, -2.0 * p.w])
    each = functools.partial(loss, implementation)
    for axis, weights in ((None, p.w), (0, w)):
        total = lambda x, w, g, axis=axis: jax.vmap(each, (0, axis, 0, 0))(x, w, g, p.dy).sum()  # noqa: E731
        dx, dw, dgates = jax.jit(jax.grad(total, (0, 1, 2)))(p.x, weights, p.gates)
        scales = (1.0, 1.0) if axis is None else (1.0, -2.0)
        parts = [oracle.matmul_gradients(p.x[i], s * p.w, p.gates[i], p.dy[i]) for i, s in enumerate(scales)]
        wanted = [np.stack(part) for part in zip(*parts, strict=True)]
        wanted[1] = wanted[1].sum(0) if axis is None else wanted[1]
        for a, b in zip((dx, dw, dgates), wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=TOLERANCE * np.abs(b).max())


@each_implementation
@pytest.mark.parametrize("rows", [3, 17])
def test_vmap_of_gradient(implementation, rows):
    p = problem(2 * rows, lead=(2, rows))
    gradient = jax.vmap(jax.grad(functools.partial(loss, implementation), (0, 1, 2)), (0, None, 0, 0))
    dx, dw, dgates = jax.jit(gradient)(p.x, p.w, p.gates, p.dy)
    for i in range(2):
        q = Problem(p.x[i], p.w, p.gates[i], p.dy[i])
        assert_matches((oracle.matmul(q.x, q.w, q.gates), dx[i], dw[i], dgates[i]), expected(q))


@each_implementation
@pytest.mark.parametrize("rows", [3, 17])
def test_scan_and_checkpoint(implementation, rows):
    p = problem(2 * rows, lead=(2, rows))
    each = jax.checkpoint(functools.partial(loss, implementation))

    def total(x, w, gates):
        return jax.lax.scan(lambda s, a: (s + each(a[0], w, a[1], a[2]), None), 0.0, (x, gates, p.dy))[0]

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(p.x, p.w, p.gates)
    wanted = expected(p)
    np.testing.assert_allclose(value, (wanted[0] * oracle.f64(p.dy)).sum(), rtol=1e-3)
    assert_matches((wanted[0], *gradients), wanted)


def test_the_default_is_an_implementation_for_this_machine():
    p = problem(3)
    assert_matches(run(p, None), expected(p))


# Layout ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_block_major_layout_and_back(dtype):
    w = jnp.arange(R * BK * C * BN).reshape(R * BK, C * BN).astype(dtype)
    blocks = to_block_major(w, (BK, BN))
    assert blocks.dtype == w.dtype
    np.testing.assert_array_equal(oracle.f64(blocks), oracle.block_major(oracle.f64(w), (BK, BN)))
    np.testing.assert_array_equal(from_block_major(blocks), w)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(30, 28, 1), (30,)])
def test_layout_refuses_what_is_not_a_matrix(shape):
    with pytest.raises(ValueError, match=r"shape.*\."):
        to_block_major(jnp.zeros(shape), (BK, BN))
    with pytest.raises(ValueError, match=r"shape.*\."):
        from_block_major(jnp.zeros(shape))


@pytest.mark.parametrize("block_shape", [(4, 7), (10, 5), (0, 7), (10, -7), (60, 7)])
def test_layout_refuses_blocks_that_do_not_fit(block_shape):
    with pytest.raises(ValueError, match=r"block.*\."):
        to_block_major(jnp.zeros((R * BK, C * BN)), block_shape)


# Mistakes -------------------------------------------------------------------------------------------------------------


def _zeros(shape, dtype="float32"):
    return jnp.zeros(shape, dtype)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("x", "w", "gates", "named"),
    [
        (_zeros(()), _zeros((30, 28)), _zeros((3, 4)), "scalar"),
        (_zeros((2, 30)), _zeros((30,)), _zeros((2, 3, 4)), r"\(30,\)"),
        (_zeros((2, 30)), _zeros((4, 30, 28)), _zeros((2, 3, 4)), r"\(4, 30, 28\)"),
        (_zeros((2, 30)), _zeros((30, 28)), _zeros((4,)), r"\(4,\)"),
        (_zeros((2, 30)), _zeros((30, 28)), _zeros((3, 4)), "leading"),
        (_zeros((2, 30)), _zeros((30, 28)), _zeros((5, 3, 4)), "leading"),
        (_zeros((2, 30)), _zeros((30, 28)), _zeros((1, 3, 4)), "leading"),
        (_zeros((2, 5, 30)), _zeros((30, 28)), _zeros((2, 3, 4)), "leading"),
        (_zeros((2, 29)), _zeros((30, 28)), _zeros((2, 3, 4)), "29"),
        (_zeros((2, 30)), _zeros((30, 28)), _zeros((2, 4, 4)), "4 x 4"),
        (_zeros((2, 30)), _zeros((30, 28)), _zeros((2, 3, 5)), "3 x 5"),
        (_zeros((2, 30)), _zeros((30, 28)), _zeros((2, 0, 4)), r"\(2, 0, 4\)"),
        (_zeros((2, 30)), _zeros((3, 4, 10, 7)), _zeros((2, 3, 4)), r"\(3, 4, 10, 7\)"),
        (_zeros((2, 33)), _zeros((4, 3, 10, 7)), _zeros((2, 3, 4)), "33"),
        (_zeros((2, 30), "int32"), _zeros((30, 28), "int32"), _zeros((2, 3, 4)), "int32"),
        (_zeros((2, 30), "float16"), _zeros((30, 28), "float16"), _zeros((2, 3, 4)), "float16.*bfloat16"),
        (_zeros((2, 30)), _zeros((30, 28)), _zeros((2, 3, 4), "int32"), "gates.*int32"),
        (_zeros((2, 30)), _zeros((30, 28)), _zeros((2, 3, 4), "bool"), "gates.*bool"),
        (_zeros((2, 30)), _zeros((30, 28), "bfloat16"), _zeros((2, 3, 4)), "bfloat16"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_a_sentence(x, w, gates, named):
    with pytest.raises(ValueError, match=f"{named}.*\\."):
        block_sparse_matmul(x, w, gates)
    with pytest.raises(ValueError, match=f"{named}.*\\."):
        jax.jit(block_sparse_matmul)(x, w, gates)


@pytest.mark.parametrize("name", ["cuda", "", "XLA"])
def test_an_unknown_implementation_is_refused(name):
    p = problem(1)
    with pytest.raises(ValueError, match=f"implementation.*{name}.*reference.*xla"):
        block_sparse_matmul(p.x, p.w, p.gates, implementation=name)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the accelerators' kernels run here")
@pytest.mark.parametrize(("implementation", "platform"), [("mosaic_tpu", "tpu"), ("triton", "gpu")])
def test_a_named_kernel_never_falls_back(implementation, platform):
    x, w, gates = jnp.ones((2, 256)), jnp.ones((256, 256)), jnp.ones((2, 2, 2))
    with pytest.raises(ValueError, match=f"'{implementation}' needs the platform {platform}, and JAX runs on cpu"):
        block_sparse_matmul(x, w, gates, implementation=implementation)


@each_layout
@pytest.mark.parametrize("rows", [1, 3, 16, 17])
def test_where_numbers_of_python_have_64_bits(rows, layout):
    p = problem(rows)
    wanted = run(p, None, layout)
    with jax.enable_x64(True):
        for actual, expected in zip(run(p, None, layout), wanted, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
