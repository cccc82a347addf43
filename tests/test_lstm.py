"""The LSTM layer against the oracle, step by step: outputs, carry, usage and every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from bwds import ModelConfig, num_kept_blocks
from bwds.lstm import LSTMCarry, init_lstm, init_lstm_carry, lstm

B, T, H = 2, 3, 8
CASES = {
    "linear": {"block_size": 4, "sparsity": 0.5},
    "softplus column": {"block_size": 4, "sparsity": 0.5, "gate_activation": "softplus", "gate_scope": "column"},
    "low-rank": {"block_size": 4, "sparsity": 0.75, "gate_rank": 3},
    "one block row": {"block_size": 8, "sparsity": 0.0, "gate_activation": "softplus"},
    "not normalised": {"block_size": 4, "gate_normalization": "none"},
    "softplus, not normalised": {"block_size": 4, "gate_activation": "softplus", "gate_normalization": "none"},
    "softmax": {"block_size": 4, "gate_activation": "softmax"},
    "relu column": {"block_size": 4, "sparsity": 0.0, "gate_activation": "relu", "gate_scope": "column"},
    "norms": {"block_size": 4, "gate_source": "norm"},
    "norms, by column": {"block_size": 2, "gate_source": "norm", "gate_scope": "column", "gate_activation": "softplus"},
    "dense": {"method": "dense"},
}
each_case = pytest.mark.parametrize("case", CASES)


def configuration(case, **changes):
    return ModelConfig(hidden_size=H, **{**CASES[case], **changes})


def rules(config):
    """The oracle's rule of both products; None for a dense layer."""
    if config.method == "dense":
        return {"input": None, "hidden": None}
    r, c = H // config.block_size, 4 * H // config.block_size
    blocks = r if config.gate_scope == "column" else r * c
    how = config.gate_activation, config.gate_scope, config.gate_normalization, config.gate_source
    rule = oracle.Rule(r, c, num_kept_blocks(blocks, config.sparsity), *how)
    return {"input": rule, "hidden": rule}


def arguments(config, batch=B, steps=T, seed=0):
    """Parameters, inputs and a carry, as one dictionary; weights larger than at initialisation, to bend every curve."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda a: 2.0 * a, init_lstm(jax.random.key(seed), config))
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"params": params, "x": draw(batch, steps, H), "h": 0.5 * draw(batch, H), "c": draw(batch, H)}


def forward(config, a, sparsity=None):
    return lstm(a["params"], a["x"], LSTMCarry(a["h"], a["c"]), config, sparsity=sparsity)


def weighted(outputs, carry):
    """A scalar that every output and both parts of the carry influence, each entry by another weight."""
    h, c = carry
    parts = (outputs, h, c)
    weights = [np.random.default_rng(i).normal(size=p.shape).astype(np.float32) for i, p in enumerate(parts)]
    return sum((p * w).sum() for p, w in zip(parts, weights, strict=True))


@functools.partial(jax.jit, static_argnames="config")
def value_and_gradients(config, a, sparsity=None):
    def loss(a):
        outputs, carry, usage = forward(config, a, sparsity)
        return weighted(outputs, carry), (outputs, carry, usage)

    (_, results), gradients = jax.value_and_grad(loss, has_aux=True)(a)
    return results, gradients


def oracle_trace(config, a):
    a = oracle.f64(a)
    return oracle.lstm(a["params"], a["x"], (a["h"], a["c"]), rules(config))


@each_case
def test_outputs_carry_usage_and_gradients(case):
    config = configuration(case)
    a = arguments(config)
    (outputs, carry, usage), gradients = value_and_gradients(config, a)
    trace = oracle_trace(config, a)
    assert trace.margin > 1e-4, "the choice of blocks must not hang on rounding"
    assert outputs.shape == (B, T, H)
    np.testing.assert_allclose(outputs, trace.outputs, atol=2e-4)
    np.testing.assert_allclose(carry.h, trace.carry[0], atol=2e-4)
    np.testing.assert_allclose(carry.c, trace.carry[1], atol=5e-4)
    oracle.assert_close(usage, {name: (g != 0).mean((0, 1)) for name, g in trace.gates.items()}, tolerance=1e-6)

    def loss(a):
        outputs, carry, *_ = oracle.lstm(a["params"], a["x"], (a["h"], a["c"]), rules(config))
        return weighted(outputs, carry)

    oracle.assert_slopes(gradients, oracle.slopes(loss, a), tolerance=2e-3)


def test_the_reference_implementation_gives_the_same():
    a = arguments(configuration("linear"))
    results = value_and_gradients(configuration("linear"), a)
    reference = value_and_gradients(configuration("linear", implementation="reference"), a)
    for one, other in zip(jax.tree.leaves(results), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3 * np.abs(other).max())


def test_many_rows():
    config = configuration("linear")
    a = arguments(config, batch=17, steps=2, seed=1)
    (outputs, carry, _), gradients = value_and_gradients(config, a)
    trace = oracle_trace(config, a)
    assert trace.margin > 1e-5
    np.testing.assert_allclose(outputs, trace.outputs, atol=2e-4)
    np.testing.assert_allclose(carry.c, trace.carry[1], atol=5e-4)

    def loss(some):
        b = oracle.f64({**a, "params": {**a["params"], "bias": some["bias"]}, "h": some["h"]})
        outputs, carry, *_ = oracle.lstm(b["params"], b["x"], (b["h"], b["c"]), rules(config))
        return weighted(outputs, carry)

    wanted = oracle.slopes(loss, {"bias": a["params"]["bias"], "h": a["h"]})
    oracle.assert_slopes({"bias": gradients["params"]["bias"], "h": gradients["h"]}, wanted, tolerance=2e-3)


@pytest.mark.parametrize("case", ["linear", "dense"])
def test_a_window_may_be_cut_in_two(case):
    config = configuration(case)
    a = arguments(config, steps=8)
    run = jax.jit(functools.partial(forward, config))
    outputs, carry, usage = run(a)
    first, between, usage_1 = run({**a, "x": a["x"][:, :4]})
    second, end, usage_2 = run({**a, "x": a["x"][:, 4:], "h": between.h, "c": between.c})
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), outputs, atol=1e-5)
    for one, other in zip(carry, end, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for name in usage:
        np.testing.assert_allclose((usage_1[name] + usage_2[name]) / 2, usage[name], atol=1e-6)


def test_a_traced_sparsity_equals_a_static_one():
    a = arguments(configuration("linear"))
    traced = configuration("linear", sparsity=0.9)
    results = value_and_gradients(traced, a, jnp.float32(0.5))
    static = value_and_gradients(configuration("linear"), a)
    for one, other in zip(jax.tree.leaves(static), jax.tree.leaves(results), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(one).max())
    outputs = value_and_gradients(traced, a, jnp.float32(0.25))[0][0]
    trace = oracle_trace(configuration("linear", sparsity=0.25), a)
    np.testing.assert_allclose(outputs, trace.outputs, atol=2e-4)


@pytest.mark.parametrize("sparsity", [0.5, 0.0])
def test_nothing_is_searched_for_where_all_blocks_are_kept(sparsity):
    config = configuration("linear", sparsity=sparsity)
    traced = jax.make_jaxpr(jax.grad(lambda a: forward(config, a)[0].sum()))(arguments(config))
    assert ("name=largest" in str(traced)) == (sparsity > 0)


def test_bfloat16_inputs_are_close_and_the_carry_stays_float32():
    config = configuration("one block row", dtype="bfloat16")
    a = arguments(config)
    low = {**a, "x": a["x"].astype(jnp.bfloat16)}
    (outputs, carry, _), gradients = value_and_gradients(config, low)
    assert outputs.dtype == jnp.bfloat16
    assert {v.dtype for v in (*carry, *jax.tree.leaves(gradients["params"]))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(oracle.f64(outputs), oracle_trace(config, low).outputs, atol=0.03)
    _, wanted = value_and_gradients(configuration("one block row"), a)
    oracle.assert_close(gradients["params"], oracle.f64(wanted["params"]), tolerance=0.05)


@pytest.mark.parametrize("case", ["linear", "low-rank", "dense"])
def test_initial_parameters(case):
    config = configuration(case)
    params = init_lstm(jax.random.key(0), config)
    assert params.keys() == {"input", "hidden", "bias"}
    assert params["bias"].shape == (4 * H,)
    for name in ("input", "hidden"):
        assert params[name]["kernel"].shape == (H, 4 * H)
        assert params[name].keys() == ({"kernel"} if case == "dense" else {"kernel", "gate"})
    leaves = jax.tree.leaves(params)
    assert all(v.dtype == jnp.float32 for v in leaves)
    assert np.abs(params["hidden"]["kernel"]).max() <= H**-0.5
    assert np.std(params["hidden"]["kernel"]) > 0.4 * H**-0.5
    assert not np.array_equal(params["input"]["kernel"], params["hidden"]["kernel"])
    carry = init_lstm_carry(B, config)
    assert all(v.shape == (B, H) and v.dtype == jnp.float32 and not v.any() for v in carry)
