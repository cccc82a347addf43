"""The QRNN layer against the oracle, step by step: outputs, carry, usage and every gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from bwds import ModelConfig, num_kept_blocks
from bwds.qrnn import QRNNCarry, init_qrnn, init_qrnn_carry, pool, qrnn

B, T, H = 2, 4, 8
CASES = {
    "linear": {"block_size": 4, "sparsity": 0.5},
    "softplus column": {"block_size": 4, "sparsity": 0.5, "gate_activation": "softplus", "gate_scope": "column"},
    "low-rank": {"block_size": 4, "sparsity": 0.75, "gate_rank": 3},
    "large blocks": {"block_size": 8, "sparsity": 0.0, "gate_activation": "softplus"},
    "not normalised": {"block_size": 4, "gate_normalization": "none"},
    "softplus, not normalised": {"block_size": 4, "gate_activation": "softplus", "gate_normalization": "none"},
    "norms": {"block_size": 4, "gate_source": "norm"},
    "norms, by column": {"block_size": 2, "gate_source": "norm", "gate_scope": "column", "gate_activation": "softplus"},
    "dense": {"method": "dense"},
}


def configuration(case, **changes):
    return ModelConfig(cell="qrnn", hidden_size=H, **{**CASES[case], **changes})


def rules(config):
    """The oracle's rule of the product; None for a dense layer."""
    if config.method == "dense":
        return {"input": None}
    r, c = 2 * H // config.block_size, 3 * H // config.block_size
    blocks = r if config.gate_scope == "column" else r * c
    kept = num_kept_blocks(blocks, config.sparsity)
    how = config.gate_activation, config.gate_scope, config.gate_normalization, config.gate_source
    return {"input": oracle.Rule(r, c, kept, *how)}


def arguments(config, batch=B, steps=T, seed=0):
    """Parameters, inputs and a carry, as one dictionary; weights larger than at initialisation, to bend every curve."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda a: 2.0 * a, init_qrnn(jax.random.key(seed), config))
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"params": params, "x": draw(batch, steps, H), "last": draw(batch, H), "c": draw(batch, H)}


def forward(config, a, sparsity=None):
    return qrnn(a["params"], a["x"], QRNNCarry(a["last"], a["c"]), config, sparsity=sparsity)


def weighted(outputs, carry):
    """A scalar that every output and both parts of the carry influence, each entry by another weight."""
    last, c = carry
    parts = (outputs, last, c)
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
    return oracle.qrnn(a["params"], a["x"], (a["last"], a["c"]), rules(config))


@pytest.mark.parametrize("case", CASES)
def test_outputs_carry_usage_and_gradients(case):
    config = configuration(case)
    a = arguments(config)
    (outputs, carry, usage), gradients = value_and_gradients(config, a)
    trace = oracle_trace(config, a)
    assert trace.margin > 1e-4, "the choice of blocks must not hang on rounding"
    assert outputs.shape == (B, T, H)
    np.testing.assert_allclose(outputs, trace.outputs, atol=2e-4)
    np.testing.assert_array_equal(carry.x, a["x"][:, -1])
    np.testing.assert_allclose(carry.c, trace.carry[1], atol=2e-4)
    oracle.assert_close(usage, {name: (g != 0).mean((0, 1)) for name, g in trace.gates.items()}, tolerance=1e-6)

    def loss(a):
        outputs, carry, *_ = oracle.qrnn(a["params"], a["x"], (a["last"], a["c"]), rules(config))
        return weighted(outputs, carry)

    oracle.assert_slopes(gradients, oracle.slopes(loss, a), tolerance=2e-3)


def test_the_reference_implementation_gives_the_same():
    a = arguments(configuration("linear"))
    results = value_and_gradients(configuration("linear"), a)
    reference = value_and_gradients(configuration("linear", implementation="reference"), a)
    for one, other in zip(jax.tree.leaves(results), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3 * np.abs(other).max())


@pytest.mark.parametrize("case", ["linear", "dense"])
def test_a_window_may_be_cut_in_two(case):
    config = configuration(case)
    a = arguments(config, steps=8)
    run = jax.jit(functools.partial(forward, config))
    outputs, carry, usage = run(a)
    first, between, usage_1 = run({**a, "x": a["x"][:, :4]})
    second, end, usage_2 = run({**a, "x": a["x"][:, 4:], "last": between.x, "c": between.c})
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), outputs, atol=1e-5)
    for one, other in zip(carry, end, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    for name in usage:
        np.testing.assert_allclose((usage_1[name] + usage_2[name]) / 2, usage[name], atol=1e-6)


def test_one_step_at_a_time():
    config = configuration("linear")
    a = arguments(config, batch=1, seed=2)
    run, trace = jax.jit(functools.partial(forward, config)), oracle_trace(config, a)
    carry, steps = QRNNCarry(a["last"], a["c"]), []
    for t in range(T):
        outputs, carry, _ = run({**a, "x": a["x"][:, t : t + 1], "last": carry.x, "c": carry.c})
        steps.append(outputs)
    assert trace.margin > 1e-4
    np.testing.assert_allclose(jnp.concatenate(steps, 1), trace.outputs, atol=2e-4)


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


@pytest.mark.parametrize("steps", [1, 2, 7, 33])
def test_pooling_is_the_recurrence(steps):
    rng = np.random.default_rng(steps)
    forget, candidate = (jnp.asarray(rng.uniform(size=(steps, B, H)), jnp.float32) for _ in range(2))
    c = jnp.asarray(rng.normal(size=(B, H)), jnp.float32)
    states, state = [], oracle.f64(c)
    for f, z in zip(oracle.f64(forget), oracle.f64(candidate), strict=True):
        state = f * state + (1 - f) * z
        states.append(state)
    np.testing.assert_allclose(jax.jit(pool)(forget, candidate, c), np.stack(states), atol=1e-5)


@pytest.mark.parametrize("forget", [0.0, 1.0])
def test_pooling_at_the_ends_of_the_forget_gate(forget):
    """A gate saturated to exactly 0 or 1 must give neither NaN values nor NaN gradients."""
    candidate, c = jnp.full((5, B, H), 0.3), jnp.full((B, H), -0.7)
    total = lambda f, z, c: pool(f, z, c).sum()  # noqa: E731
    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(jnp.full((5, B, H), forget), candidate, c)
    np.testing.assert_allclose(value, 5 * B * H * (0.3 if forget == 0 else -0.7), rtol=1e-5)
    assert all(np.isfinite(g).all() for g in gradients)


def test_bfloat16_inputs_are_close_and_the_carry_stays_float32():
    config = configuration("large blocks", dtype="bfloat16")
    a = arguments(config)
    low = {**a, "x": a["x"].astype(jnp.bfloat16)}
    (outputs, carry, _), gradients = value_and_gradients(config, low)
    assert outputs.dtype == jnp.bfloat16
    assert {v.dtype for v in (*carry, *jax.tree.leaves(gradients["params"]))} == {jnp.dtype("float32")}
    np.testing.assert_allclose(oracle.f64(outputs), oracle_trace(config, low).outputs, atol=0.03)
    _, wanted = value_and_gradients(configuration("large blocks"), a)
    oracle.assert_close(gradients["params"], oracle.f64(wanted["params"]), tolerance=0.05)


@pytest.mark.parametrize("case", ["linear", "low-rank", "dense"])
def test_initial_parameters(case):
    config = configuration(case)
    params = init_qrnn(jax.random.key(0), config)
    assert params.keys() == {"input", "bias"}
    assert params["bias"].shape == (3 * H,)
    assert params["input"]["kernel"].shape == (2 * H, 3 * H)
    assert params["input"].keys() == ({"kernel"} if case == "dense" else {"kernel", "gate"})
    assert all(v.dtype == jnp.float32 for v in jax.tree.leaves(params))
    assert np.abs(params["input"]["kernel"]).max() <= H**-0.5
    assert np.std(params["input"]["kernel"]) > 0.4 * H**-0.5
    carry = init_qrnn_carry(B, config)
    assert all(v.shape == (B, H) and v.dtype == jnp.float32 and not v.any() for v in carry)
