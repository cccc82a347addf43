"""Gates and product of few rows on a GPU: the kernel interpreted, derivatives and vmap, and what models are made of."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from bwds.linear import GateOptions, apply_linear, init_linear, prepare
from pallas_kernels.gated import api as gated
from pallas_kernels.gated import triton_gates
from pallas_kernels.topk.search import largest

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

BLOCK = 16
# One word and several, sizes that are no powers of two, a single column.
GRIDS = ((3, 5), (40, 3), (4, 1), (70, 2))
interpreted_and_on_a_gpu = pytest.mark.parametrize(
    "interpret", [True, pytest.param(False, marks=pytest.mark.gpu)], ids=["interpreted", "compiled"]
)
each_scaling = pytest.mark.parametrize(
    ("activation", "normalization"),
    [*itertools.product(("linear", "softplus", "relu"), ("mean", "none")), ("softmax", "mean")],
)


@pytest.fixture(autouse=True)
def exact_products():
    """Without this a GPU takes one TF32 product for each float32 product."""
    with jax.default_matmul_precision("float32"):
        yield


def problem(rows, grid, ties=False):
    rng = np.random.default_rng([rows, *grid])
    n = grid[0] * grid[1]
    normal = lambda *size: rng.normal(size=size).astype(np.float32)  # noqa: E731
    scores, bias = normal(rows, n), normal(n)
    if ties:
        scores, bias = scores.round(), bias.round()
    x, w = normal(rows, grid[0] * BLOCK), normal(grid[0] * BLOCK, grid[1] * BLOCK)
    return tuple(map(jnp.asarray, (x, w, scores, bias)))


LINEAR = {"activation": "linear", "normalization": "mean"}
ONE = {"activation": "one", "normalization": "mean"}


def marked(words):
    """What the bit masks [words, C, 1, b] mark: bool [b, 32 words, C]."""
    bits = np.asarray(words).view(np.uint32)[:, :, 0, None] >> np.arange(32, dtype=np.uint32)[None, None, :, None] & 1
    return bits.transpose(3, 0, 2, 1).reshape(bits.shape[3], -1, bits.shape[1]).astype(bool)


# The kernel -----------------------------------------------------------------------------------------------------------


@interpreted_and_on_a_gpu
@each_scaling
@pytest.mark.parametrize("grid", GRIDS)
def test_gates_and_masks(grid, activation, normalization, interpret):
    n = grid[0] * grid[1]
    # Scores with many ties and some zeros, but only where no gate of zero can hide a wrong choice.
    _, _, scores, bias = problem(3, grid, ties=activation in ("softplus", "softmax"))
    run = functools.partial(
        triton_gates.gates_and_words, grid=grid, activation=activation, normalization=normalization, interpret=interpret
    )
    run = jax.jit(run)
    for k in {1, max(1, n // 4), n}:
        gates, words = run(scores, bias, jnp.int32(k))
        wanted = oracle.gates((scores + bias[None, :]).reshape(-1, *grid), k, activation, normalization=normalization)
        np.testing.assert_allclose(gates.transpose(2, 0, 1), wanted, rtol=2e-4, atol=1e-6)
        np.testing.assert_array_equal(marked(words)[:, : grid[0]], wanted != 0)
        assert not marked(words)[:, grid[0] :].any()


@interpreted_and_on_a_gpu
@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("grid", GRIDS)
def test_product_never_reads_what_no_row_keeps(rows, grid, interpret):
    x, w, scores, bias = problem(rows, grid)
    k = 2
    gates = oracle.gates((scores + bias[None, :]).reshape(-1, *grid), k)
    unread = np.repeat(np.repeat((gates == 0).all(0), BLOCK, 0), BLOCK, 1)
    poisoned = np.where(unread, np.nan, w).astype(np.float32)
    run = functools.partial(triton_gates.gated_matmul, grid=grid, **LINEAR, interpret=interpret)
    y, actual = jax.jit(run)(x, poisoned, scores, bias, jnp.int32(k))
    np.testing.assert_allclose(actual, gates, rtol=1e-4)
    wanted = oracle.matmul(x, w, gates)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))


@interpreted_and_on_a_gpu
def test_gates_of_one(interpret):
    """Norms have such gates: their scores choose blocks and do nothing else."""
    grid, k = GRIDS[0], 4
    x, w, scores, bias = problem(3, grid)
    run = functools.partial(triton_gates.gated_matmul, grid=grid, **ONE, interpret=interpret)
    y, gates = jax.jit(run)(x, w, scores, 0 * bias, jnp.int32(k))
    kept = np.stack([oracle.kept_mask(s, k) for s in np.asarray(scores).reshape(-1, *grid)])
    np.testing.assert_array_equal(gates, kept)
    np.testing.assert_allclose(y, oracle.matmul(x, w, kept), atol=1e-4)


# As a function of arrays, and in a layer ------------------------------------------------------------------------------


def plain(grid):
    """The same for softplus gates, by operations of JAX's own alone but for the choice."""

    def run(x, w, scores, bias, k):
        scores = scores + bias[None, :]
        values = jnp.where(largest(scores, k), jax.nn.softplus(scores), 0.0)
        gates = (values * values.shape[1] / values.sum(1, keepdims=True)).reshape(-1, *grid)
        blocks = w.reshape(grid[0], BLOCK, grid[1], BLOCK)
        y = jnp.einsum("brk,rkcn,brc->bcn", x.reshape(-1, grid[0], BLOCK), blocks, gates)
        return y.reshape(x.shape[0], -1), gates

    return run


def test_derivatives_and_vmap_are_those_of_plain_operations():
    grid = GRIDS[0]
    x, w, scores, bias = problem(4, grid)
    wanted = plain(grid)
    fused = functools.partial(gated.gated_matmul, grid=grid, activation="softplus", normalization="mean")
    k = jnp.int32(3)
    keys = iter(jax.random.split(jax.random.key(0), 2))
    cotangents = jax.tree.map(lambda v: jax.random.normal(next(keys), v.shape), wanted(x, w, scores, bias, k))
    for a, b in zip(
        jax.vjp(lambda *o: fused(*o, k), x, w, scores, bias)[1](cotangents),
        jax.vjp(lambda *o: wanted(*o, k), x, w, scores, bias)[1](cotangents),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    for axes in ((0, None, 0, None, None), (0, 0, 0, 0, None)):
        operands = [
            jnp.stack([a, 2 * a]) if axis == 0 else a for a, axis in zip((x, w, scores, bias), axes, strict=False)
        ]
        for a, b in zip(jax.vmap(fused, axes)(*operands, k), jax.vmap(wanted, axes)(*operands, k), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("implementation", "source", "scope"),
    [
        (None, "learned", "matrix"),
        (None, "bias", "matrix"),
        (None, "norm", "matrix"),
        (None, "norm", "column"),
        ("xla", "learned", "matrix"),
        (None, "random", "matrix"),
        (None, "learned", "column"),
    ],
)
def test_a_layer_takes_it_where_it_fits_and_gives_the_same(implementation, source, scope):
    grid, k = (4, 3), 2
    options = GateOptions(grid, "linear", scope, implementation, source)
    params = init_linear(jax.random.key(0), 64, 48, bound=0.2, options=options, gate_rank=None)
    fits = implementation is None and source != "random" and scope == "matrix"
    run = lambda params, x, save: apply_linear(prepare(params, options), x, options, k, save=save)  # noqa: E731
    loss = lambda params, x, save: (run(params, x, save)[0] ** 2).sum()  # noqa: E731
    for shape in ((64,), (2, 3, 64), (17, 64)):
        x = jax.random.normal(jax.random.key(1), shape)
        (y, kept), (wanted, gating) = run(params, x, False), run(params, x, True)
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(kept.gates, gating.gates, rtol=1e-5)
        taken = fits and shape != (17, 64)
        assert ("name=gated_matmul" in str(jax.make_jaxpr(lambda x: run(params, x, False)[0])(x))) == taken
        # With norms only the gates are left, whatever computes them.
        assert (kept.scores is None) == (taken or source == "norm")
        actual, expected = (jax.grad(loss, (0, 1))(params, x, save) for save in (False, True))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), actual, expected)


def test_all_blocks_kept_is_no_choice():
    options = GateOptions((4, 3))
    params = init_linear(jax.random.key(0), 64, 48, bound=0.2, options=options, gate_rank=None)
    assert apply_linear(params, jnp.ones((1, 64)), options, 12, save=False)[1].kept.all()


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 5, 16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_on_a_gpu(rows, dtype):
    options = GateOptions((12, 48))
    params = init_linear(jax.random.key(0), 1536, 6144, bound=0.03, options=options, gate_rank=64)
    x = jax.random.normal(jax.random.key(1), (rows, 1536), dtype)
    y, kept = apply_linear(params, x, options, 144, save=False)
    wanted, gating = apply_linear(params, x, options, 144, save=True)
    np.testing.assert_allclose(kept.gates, gating.gates, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(oracle.f64(y), oracle.f64(wanted), atol=1e-2 * np.abs(oracle.f64(wanted)).max())


# Compiled ahead of time -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled_ahead_of_time(compile_for_a_gpu) -> list[dict]:
    return compile_for_a_gpu("aot_gpu_decode")


def test_a_word_takes_few_kernels_on_an_h200(compiled_ahead_of_time):
    """LSTM 2 x 4096, bfloat16, rank 128, sparsity 0.75, as counted in the compiled program.

    A gated product takes four, with eight streams five: two or three for scores of low rank, one for gates and masks,
    the product. Sums of splits are no kernels of their own. The rest of a token takes nine, with eight streams ten, as
    in the dense model.
    """
    kernels = {
        (case["method"], case["streams"]): case["kernels"] for case in compiled_ahead_of_time if "method" in case
    }
    assert kernels["dense", 1] <= 9 + 4
    assert kernels["dynamic", 1] <= 9 + 4 * 5
    assert kernels["dynamic", 8] <= 10 + 4 * 5
    # Norms take only two for scores.
    assert kernels["norm", 1] <= 9 + 4 * 4


def test_the_most_scores_stay_in_registers(compiled_ahead_of_time):
    spilled = {case["activation"]: case["spilled_bytes"] for case in compiled_ahead_of_time if "activation" in case}
    assert spilled == {"linear": 0, "softplus": 0, "softmax": 0, "relu": 0, "one": 0}


@pytest.mark.parametrize(("grid", "fits"), [((64, 256), True), ((64, 257), False), ((128, 192), False)])
def test_more_scores_than_registers_hold_go_the_other_way(grid, fits):
    x, w, gates = (
        jax.ShapeDtypeStruct(shape, "float32")
        for shape in ((1, grid[0] * BLOCK), (grid[0] * BLOCK, grid[1] * BLOCK), (1, *grid))
    )
    assert triton_gates.takes(x, w, gates) == fits
