"""Blocks chosen by norms, without a gate: scores, choice, product and gradients, and that norms are computed once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import test_lstm
import test_qrnn
from flax import nnx
from jax.extend.core import jaxprs_in_params
from test_sharding import LSTM as SHARDED
from test_sharding import alone, curve

import bwds
from bwds import ModelConfig, block_sparse_matmul, cost, decode_params, gate_scores, init_gate, language_model, nn
from bwds.generate import generate, greedy_rollout
from bwds.linear import GateOptions, linear
from bwds.norms import LARGEST, block_norms
from bwds.training.devices import MeshConfig
from pallas_kernels.dense import matmul

R, C, BK, BN = 5, 3, 4, 6
K, N = R * BK, C * BN
KEY = jax.random.key(0)
CONFIGS = {
    "lstm": ModelConfig(vocab_size=30, hidden_size=32, block_size=8, gate_source="norm"),
    "qrnn": ModelConfig(vocab_size=30, hidden_size=32, block_size=8, cell="qrnn", gate_source="norm"),
    "by column": ModelConfig(vocab_size=30, hidden_size=32, block_size=8, gate_source="norm", gate_scope="column"),
}
TOKENS = np.random.default_rng(0).integers(30, size=(3, 5), dtype=np.int32)
each_config = pytest.mark.parametrize("name", CONFIGS)


def problem(rows=3, seed=0):
    """x [rows, K], w [K, N] whose blocks differ in size, dy [rows, N]."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.normal(size=(R, C))).repeat(BK, 0).repeat(BN, 1)
    shapes = (rows, K), (K, N), (rows, N)
    x, w, dy = (rng.normal(size=shape) for shape in shapes)
    return tuple(jnp.asarray(a, jnp.float32) for a in (x, w * sizes, dy))


def counted(jaxpr, shape, in_loop=False):
    """How many square roots give this shape: (outside of loops, in loops)."""
    found = np.zeros(2, int)
    for equation in jaxpr.eqns:
        if equation.primitive.name == "sqrt" and equation.outvars[0].aval.shape == shape:
            found[int(in_loop)] += 1
        loop = in_loop or equation.primitive.name in ("scan", "while")
        for inner in jaxprs_in_params(equation.params):
            found += counted(inner, shape, loop)
    return found


# One product ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["plain", "block-major"])
@pytest.mark.parametrize("scope", ["matrix", "column"])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_a_linear_map(rows, scope, layout):
    """Scores, kept blocks, y, and gradients of x and w for a random cotangent; the choice is a constant of them."""
    x, w, dy = problem(rows)
    wanted = oracle.norm_scores(oracle.f64(w), oracle.f64(x), R, C)
    np.testing.assert_allclose(gate_scores({}, x, (R, C), "norm", w=w), wanted, rtol=1e-5)
    k = 2 if scope == "column" else 7
    assert min(oracle.margin(s, k, scope) for s in wanted) > 1e-4
    kept = np.stack([oracle.kept_mask(s, k, scope) for s in wanted])
    kernel = bwds.to_block_major(w, (BK, BN)) if layout == "block-major" else w
    # Whatever activation is named.
    options = GateOptions((R, C), "softplus", scope, source="norm")
    sparsity = 1 - k / (R if scope == "column" else R * C)
    run = lambda kernel, x: linear({"kernel": kernel, "gate": {}}, x, options, sparsity)  # noqa: E731
    y, pull, gating = jax.vjp(run, kernel, x, has_aux=True)
    dw, dx = pull(dy)
    np.testing.assert_array_equal(gating.gates, kept)
    wanted_dx, wanted_dw, _ = oracle.matmul_gradients(x, w, kept, dy)
    oracle.assert_close(y, oracle.matmul(x, w, kept), tolerance=1e-5)
    oracle.assert_close(dx, wanted_dx, tolerance=1e-5)
    oracle.assert_close(bwds.from_block_major(dw) if dw.ndim == 4 else dw, wanted_dw, tolerance=1e-5)


def test_scores_come_from_the_weight_in_either_layout_or_from_its_norms():
    x, w, _ = problem()
    norms = block_norms(w, (BK, BN))
    np.testing.assert_allclose(norms, oracle.block_norms(oracle.f64(w), R, C), rtol=1e-6)
    scores = gate_scores({}, x, (R, C), "norm", w=w)
    for other in (
        gate_scores({}, x, (R, C), "norm", w=bwds.to_block_major(w, (BK, BN))),
        gate_scores({"norms": norms}, x, (R, C), "norm"),
        gate_scores(init_gate(KEY, K, R * C, source="norm"), x[:, None], (R, C), "norm", w=w)[:, 0],
    ):
        np.testing.assert_allclose(other, scores, rtol=1e-6)
    low = gate_scores({}, x.astype(jnp.bfloat16), (R, C), "norm", w=w.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, scores, rtol=0.01)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30, 3e38])
def test_scores_and_gradients_are_finite_at_any_size(size):
    x, w, dy = problem()
    for a, b in ((size * x.clip(-1, 1), w), (x, size * w.clip(-1, 1)), (x.at[:, :BK].set(0), size * w.clip(-1, 1))):
        scores = gate_scores({}, a, (R, C), "norm", w=b)
        assert np.isfinite(scores).all()
        assert scores.max() <= LARGEST**2
    params = {"kernel": w, "gate": {}}
    options = GateOptions((R, C), source="norm")
    gradient = jax.grad(lambda x: (linear(params, x, options, 0.5)[0] * dy).sum())(jnp.zeros_like(x))
    assert np.isfinite(gradient).all()


def test_all_blocks_are_the_dense_product():
    """The dense product itself, or the kernels of a named implementation with gates of one. Nothing is searched for."""
    for rows in (1, 20):
        x, w, _ = problem(rows)
        run = lambda x, w, **o: linear({"kernel": w, "gate": {}}, x, GateOptions((R, C), source="norm", **o), 0.0)[0]  # noqa: E731
        np.testing.assert_array_equal(run(x, w), matmul(x, w))
        named = block_sparse_matmul(x, w, jnp.ones((rows, R, C)), implementation="xla")
        np.testing.assert_array_equal(run(x, w, implementation="xla"), named)
        np.testing.assert_allclose(run(x, w), x @ w, rtol=1e-5, atol=1e-5)
        assert "name=largest" not in str(jax.make_jaxpr(run)(x, w))


# Layers and models ----------------------------------------------------------------------------------------------------
# Outputs and gradients against the oracle: test_lstm.py and test_qrnn.py.


@pytest.mark.parametrize("module", [test_lstm, test_qrnn], ids=["lstm", "qrnn"])
def test_a_layer_with_all_blocks_is_the_dense_one(module):
    """Values and gradients, to the rounding of sums in another order."""
    a = module.arguments(module.configuration("norms"))
    dense = {
        **a["params"],
        **{name: {"kernel": a["params"][name]["kernel"]} for name in a["params"] if name != "bias"},
    }
    found = module.value_and_gradients(module.configuration("norms", sparsity=0.0), a)
    wanted = module.value_and_gradients(module.configuration("dense"), {**a, "params": dense})
    for one, other in zip(found[0][:2], wanted[0][:2], strict=True):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), one, other)
    assert all((used == 1).all() for used in found[0][2].values())
    for one, other in zip(jax.tree.leaves(found[1]), jax.tree.leaves(wanted[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(other).max())


@each_config
def test_a_model_at_sparsity_0_is_the_dense_model(name):
    config = dataclasses.replace(CONFIGS[name], sparsity=0.0)
    dense = dataclasses.replace(config, method="dense")
    params, plain = language_model(config).init(KEY), language_model(dense).init(KEY)
    for layer in ("layer_0", "layer_1"):
        for map_name in params[layer].keys() - {"bias"}:
            np.testing.assert_array_equal(params[layer][map_name]["kernel"], plain[layer][map_name]["kernel"])
    logits = [
        jax.jit(language_model(c).apply)(p, TOKENS, language_model(c).init_carry(3))[0]
        for c, p in ((config, params), (dense, plain))
    ]
    np.testing.assert_allclose(*logits, atol=1e-6)


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float32") for name in CONFIGS), ("lstm", "bfloat16")])
def test_laid_out_for_decoding_it_is_the_same_model(name, dtype):
    config = dataclasses.replace(CONFIGS[name], dtype=dtype)
    lm = language_model(config)
    params = lm.init(KEY)
    laid_out = decode_params(params, config)
    for layer in ("layer_0", "layer_1"):
        for map_name in params[layer].keys() - {"bias"}:
            kernel, gate = params[layer][map_name]["kernel"], params[layer][map_name]["gate"]
            assert gate == {}
            (norms,) = laid_out[layer][map_name]["gate"].values()
            assert norms.dtype == jnp.float32
            grid = kernel.shape[0] // 8, kernel.shape[1] // 8
            # The norms are those of the kernel as it was trained, before it is rounded.
            np.testing.assert_allclose(norms, oracle.block_norms(oracle.f64(kernel), *grid), rtol=1e-6)
            assert laid_out[layer][map_name]["kernel"].dtype == dtype
    jax.tree.map(np.testing.assert_array_equal, decode_params(laid_out, config), laid_out)
    run = jax.jit(lm.apply)
    (logits, _, info), (other, _, same) = (run(p, TOKENS, lm.init_carry(3)) for p in (params, laid_out))
    np.testing.assert_allclose(other, logits, atol=1e-6 if dtype == "float32" else 2e-2)
    assert float(info.density) == pytest.approx(0.5)
    if dtype == "float32":
        jax.tree.map(np.testing.assert_array_equal, same.usage, info.usage)
        words = [generate(lm, p, [1, 2], key=KEY, length=4, temperature=0.0) for p in (params, laid_out)]
        np.testing.assert_array_equal(*words)


@each_config
def test_bfloat16_is_close(name):
    low = dataclasses.replace(CONFIGS[name], dtype="bfloat16")
    params = language_model(low).init(KEY)
    logits = [
        jax.jit(language_model(c).apply)(params, TOKENS, language_model(c).init_carry(3))[0]
        for c in (CONFIGS[name], low)
    ]
    # Some rows keep another block, whose score lies within rounding of the last one kept.
    assert np.abs(logits[0] - logits[1]).mean() < 0.02 * np.abs(logits[0]).mean()


def test_norms_follow_dropped_weights():
    """Norms stored beside a kernel are those of all its weights, so they count only while no weight is dropped."""
    config = dataclasses.replace(CONFIGS["lstm"], weight_dropout=0.5)
    lm = language_model(config)
    params = lm.init(KEY)
    others = jax.random.uniform(KEY, (4, 16))
    layer = {**params["layer_0"], "hidden": {**params["layer_0"]["hidden"], "gate": {"norms": others}}}
    run = jax.jit(lm.apply)
    for key, same in ((None, False), (jax.random.key(1), True)):
        logits, held = (
            run(p, TOKENS, lm.init_carry(3), dropout_key=key)[0] for p in (params, {**params, "layer_0": layer})
        )
        assert np.array_equal(logits, held) == same


# How often norms are computed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm", "qrnn"])
def test_a_training_step_takes_norms_once(name):
    config = CONFIGS[name]
    lm = language_model(config)
    params, carry = lm.init(KEY), lm.init_carry(3)
    step = jax.make_jaxpr(jax.value_and_grad(lambda params: lm.apply(params, TOKENS, carry)[0].std()))(params)
    grid, products = ((4, 16), 4) if name == "lstm" else ((8, 12), 2)
    np.testing.assert_array_equal(counted(step.jaxpr, grid), [products, 0])


@pytest.mark.parametrize("name", ["lstm", "qrnn"])
def test_decoding_takes_none(name):
    config = CONFIGS[name]
    lm = language_model(config)
    params = decode_params(lm.init(KEY), config)
    run = lambda params: greedy_rollout(lm, params, jnp.zeros(1, jnp.int32), lm.init_carry(1), steps=3)  # noqa: E731
    program = jax.make_jaxpr(run)(params).jaxpr
    assert counted(program, (4, 16) if name == "lstm" else (8, 12)).sum() == 0
    rows = counted(program, (1, 4)) + counted(program, (1, 1, 4)) + counted(program, (1, 1, 8))
    assert rows.sum() == (4 if name == "lstm" else 2), "the norm of each input"


def test_a_step_multiplies_no_more_than_its_cost_says():
    """In the compiled program: what a token takes beyond a model whose scores are constant."""
    config = dataclasses.replace(CONFIGS["lstm"], hidden_size=256, block_size=64, implementation="reference")

    def flops(config):
        lm = language_model(config)
        shapes = jax.eval_shape(lambda key: decode_params(lm.init(key), config), KEY)
        step = jax.jit(lambda params, tokens, carry: lm.apply(params, tokens, carry)[:2])
        return step.lower(shapes, TOKENS[:1, :1], lm.init_carry(1)).compile().cost_analysis()["flops"]

    more = flops(config) - flops(dataclasses.replace(config, gate_source="random"))
    assert more <= 2 * cost(config).gates


# Modules, meshes ------------------------------------------------------------------------------------------------------


def test_modules():
    x = jax.random.normal(KEY, (2, 3, 16))
    layer = nn.BlockSparseLinear(
        16, 32, block_shape=(4, 8), gate_source="norm", return_gates=True, rngs=nnx.Rngs(0), sparsity=0.75
    )
    assert nnx.to_pure_dict(nnx.state(layer, nnx.Param)).keys() == {"kernel", "bias"}
    y, gates = layer(x)
    scores = gate_scores({}, x, (4, 4), "norm", w=layer.kernel[...])
    np.testing.assert_array_equal(gates, bwds.topk_gates(scores, sparsity=0.75) != 0)
    np.testing.assert_allclose(y, block_sparse_matmul(x, layer.kernel[...], gates), rtol=1e-6, atol=1e-6)
    laid_out = layer.for_decoding()
    assert laid_out.gate["norms"].shape == (4, 4)
    for copy in (laid_out, laid_out.for_decoding(), nnx.merge(*nnx.split(laid_out))):
        for one, other in zip(copy(x), (y, gates), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for module in (nn.LSTM, nn.QRNN):
        layer = module(16, block_size=4, gate_source="norm", rngs=nnx.Rngs(0))
        outputs = layer(x)
        copy = layer.for_decoding()
        np.testing.assert_allclose(copy(x).y, outputs.y, atol=1e-6)
        np.testing.assert_allclose(copy.for_decoding()(x).y, outputs.y, atol=1e-6)
        gradients = nnx.grad(lambda layer, x: layer(x).y.sum())(layer, x)
        assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradients))


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
@pytest.mark.parametrize(("cell", "scope"), [("lstm", "matrix"), ("qrnn", "column")])
def test_training_on_a_mesh_is_the_same(cell, scope):
    """Columns over two devices: each chooses by the norms of all columns."""
    config = dataclasses.replace(SHARDED, cell=cell, gate_scope=scope, gate_source="norm", weight_dropout=0.1)
    (expected, whole), (got, spread) = alone(config, 6), curve(MeshConfig(1, 2), config, 6)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(spread.params), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-4)


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_arrays_on_a_mesh_of_explicit_axes():
    config = CONFIGS["lstm"]
    lm = language_model(config)
    params = lm.init(KEY)
    mesh = jax.make_mesh((2,), ("data",))
    with jax.set_mesh(mesh):
        tokens = jax.device_put(TOKENS.repeat(2, 0), jax.NamedSharding(mesh, jax.P("data")))
        logits = jax.jit(lambda p, t: lm.apply(decode_params(p, config), t, lm.init_carry(6))[0])(params, tokens)
    wanted = lm.apply(params, TOKENS.repeat(2, 0), lm.init_carry(6))[0]
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
