"""Scores to gates against the oracle: which blocks are kept, their values, their gradients, and hostile scores."""

import functools
import itertools
import math
from fractions import Fraction

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from bwds import ModelConfig, gate_scores, init_gate, topk_gates
from bwds.linear import gate_options

R, C = 5, 3
SPARSITIES = (0.0, 0.1, 0.5, 0.9, 0.99)
LARGEST = float(np.finfo(np.float32).max)

ACTIVATIONS = ("linear", "softplus", "softmax", "relu")
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
each_scope = pytest.mark.parametrize("scope", ["matrix", "column"])


def count(sparsity, scope, shape=(R, C)):
    """Blocks kept of the matrix or of each column, in exact arithmetic."""
    blocks = shape[0] if scope == "column" else shape[0] * shape[1]
    return max(1, math.ceil((1 - Fraction(str(sparsity))) * blocks))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), jnp.float32)


@functools.partial(jax.jit, static_argnames=("activation", "scope"))
def gates_and_gradient(scores, cotangent, num_kept, activation="linear", scope="matrix"):
    gates, vjp = jax.vjp(lambda s: topk_gates(s, num_kept=num_kept, activation=activation, scope=scope), scores)
    return gates, vjp(cotangent)[0]


# Values and gradients -------------------------------------------------------------------------------------------------


@each_activation
@each_scope
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_values_and_gradients(activation, scope, sparsity):
    scores, cotangent = 3 * normal(8, R, C), normal(8, R, C, seed=1)
    k = count(sparsity, scope)
    gates, gradient = gates_and_gradient(scores, cotangent, k, activation, scope)
    wanted = oracle.gates(scores, k, activation, scope)
    assert gates.shape == scores.shape
    np.testing.assert_allclose(gates, wanted, rtol=2e-4, atol=1e-5)
    kept = np.stack([oracle.kept_mask(s, k, scope) for s in scores])
    if activation == "relu":
        np.testing.assert_array_equal(np.asarray(gates) != 0, wanted != 0)
        assert 1 - 1e-6 <= gates.mean((-2, -1)).min() <= gates.mean((-2, -1)).max() <= 1.5
    else:
        assert (np.asarray(gates) != 0).sum() == 8 * k * (C if scope == "column" else 1)
        # A sum of scores that nearly cancels makes gates, and their rounding errors, large.
        cancelling = np.abs(wanted).max() / C / R
        np.testing.assert_allclose(gates.mean((-2, -1)), 1.0, atol=1e-5 * max(cancelling, 1))
    wanted = oracle.gates_gradient(scores, cotangent, k, activation, scope)
    for a, b in zip(gradient, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4 * max(np.abs(b).max(), 1))
    assert not np.any(np.asarray(gradient)[~kept])


@each_activation
@each_scope
@pytest.mark.parametrize("k", [1, 3, 5])
def test_oracle_gradient_is_the_derivative_of_its_gates(activation, scope, k):
    scores, cotangent = (oracle.f64(normal(2, R, C, seed=s)) for s in (3, 4))
    assert min(oracle.margin(s, k, scope) for s in scores) > 1e-3
    numeric = oracle.differences(lambda s: (oracle.gates(s, k, activation, scope) * cotangent).sum(), scores)
    analytic = oracle.gates_gradient(scores, cotangent, k, activation, scope)
    np.testing.assert_allclose(numeric, analytic, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
@each_scope
def test_single_rows_and_columns_of_blocks(shape, scope):
    scores, cotangent = normal(4, *shape), normal(4, *shape, seed=1)
    for k in sorted({1, count(0.5, scope, shape), count(0, scope, shape)}):
        gates, gradient = gates_and_gradient(scores, cotangent, k, "softplus", scope)
        np.testing.assert_allclose(gates, oracle.gates(scores, k, "softplus", scope), rtol=1e-5)
        wanted = oracle.gates_gradient(scores, cotangent, k, "softplus", scope)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-5)


@each_activation
def test_sparsity_is_the_fraction_omitted(activation):
    scores = normal(2, 4, 5)
    gates = jax.jit(topk_gates, static_argnames=("sparsity", "activation", "scope"))
    for sparsity, k in ((0.0, 20), (0.26, 15), (0.7, 6), (0.99, 1)):
        wanted = oracle.gates(scores, k, activation)
        np.testing.assert_allclose(
            gates(scores, sparsity=sparsity, activation=activation), wanted, rtol=1e-4, atol=1e-5
        )
    gates = gates(scores, sparsity=0.6, activation=activation, scope="column")
    np.testing.assert_allclose(gates, oracle.gates(scores, 2, activation, "column"), rtol=1e-4, atol=1e-5)


def test_softplus_counts_scores_below_minus_forty_as_that():
    scores = np.full((R, C), -1000.0, np.float32)
    scores[0, 0], scores[1, 1] = -38.0, -40.0
    gates, gradient = gates_and_gradient(scores, normal(R, C), R * C, "softplus")
    np.testing.assert_allclose(gates, oracle.gates(scores, R * C, "softplus"), rtol=1e-5)
    assert gradient[0, 0] != 0
    assert not np.any(np.asarray(gradient)[scores < -40])


def test_softmax_counts_scores_far_below_the_largest_kept_one_as_forty_below():
    scores = np.full((R, C), -1000.0, np.float32)
    scores[0, 0], scores[1, 1], scores[2, 2] = 5.0, -34.0, -36.0
    cotangent = normal(R, C)
    gates, gradient = gates_and_gradient(scores, cotangent, R * C, "softmax")
    np.testing.assert_allclose(gates, oracle.gates(scores, R * C, "softmax"), rtol=1e-5)
    assert (np.asarray(gates) > 0).all()
    assert gradient[1, 1] != 0
    assert not np.any(np.asarray(gradient)[scores < -35])
    np.testing.assert_allclose(gates, topk_gates(scores + 4.0, num_kept=R * C, activation="softmax"), rtol=1e-5)


@each_scope
@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_gates_without_a_sum_of_both_signs_are_bounded(scope, sparsity):
    """Softmax gates by R * C with mean one, ReLU gates by (1 + sqrt(k)) R * C / k with mean 1.5 at most."""
    scores, shape = hostile(), (R + 1, C)
    blocks, k = R * C + C, count(sparsity, scope, shape)
    gates, _ = gates_and_gradient(scores, np.ones_like(scores), k, "softmax", scope)
    np.testing.assert_allclose(gates.mean((-2, -1)), 1.0, rtol=1e-5)
    assert (np.asarray(gates) != 0).sum() == len(scores) * k * (C if scope == "column" else 1)
    assert 0 <= gates.min() <= gates.max() <= blocks * (1 + 1e-6)
    gates, _ = gates_and_gradient(scores, np.ones_like(scores), k, "relu", scope)
    kept = k * (C if scope == "column" else 1)
    assert 0 <= gates.min() <= gates.max() <= blocks / kept * (1 + kept**0.5) * (1 + 1e-6)
    assert 1 - 1e-5 <= gates.mean((-2, -1)).min() <= gates.mean((-2, -1)).max() <= 1.5


def test_relu_gates_of_equal_scores_are_equal_whatever_the_scores():
    for value in (-3.0, 0.0, 1e-30, 1e30, -LARGEST):
        gates = topk_gates(np.full((R, C), value, np.float32), num_kept=4, activation="relu")
        np.testing.assert_allclose(gates, np.where(np.arange(R * C).reshape(R, C) < 4, R * C / 4, 0.0), rtol=1e-6)


def test_relu_cuts_kept_scores_far_below_their_mean():
    scores = np.full((R, C), 9.0, np.float32)
    scores[1, 2] = -30.0
    gates, gradient = gates_and_gradient(scores, normal(R, C), R * C, "relu")
    assert np.argwhere(np.asarray(gates) == 0).tolist() == [[1, 2]]
    np.testing.assert_allclose(gates, oracle.gates(scores, R * C, "relu"), rtol=1e-5)
    # The score still counts in the mean and the root.
    assert gradient[1, 2] != 0


_EXTREME = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 1e-30, LARGEST, -LARGEST]) | st.floats(-50, 50, width=32)


@each_activation
@each_scope
@hypothesis.given(
    scores=hnp.arrays(np.float32, (R, C), elements=_EXTREME) | _EXTREME.map(lambda v: np.full((R, C), v, np.float32)),
    k=st.integers(1, R),
    seed=st.integers(0, 3),
)
def test_any_scores_give_finite_gates_and_gradients(activation, scope, scores, k, seed):
    k = k if scope == "column" else 3 * k
    gates, gradient = gates_and_gradient(scores, normal(R, C, seed=seed), k, activation, scope)
    assert np.isfinite(gates).all()
    assert np.isfinite(gradient).all()
    assert not np.any(np.asarray(gates)[~oracle.kept_mask(np.float64(scores), k, scope)])
    if activation in ("softmax", "relu"):
        np.testing.assert_allclose(gates, oracle.gates(scores, k, activation, scope), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("excess", [0.0, 3e-5, 3e-4])
def test_the_denominator_of_a_linear_gate_has_a_floor(sign, excess):
    scores = np.tile([1.0, -1.0], 8).reshape(4, 4).astype(np.float32)
    scores[0, 0] += sign * 16 * excess
    cotangent = normal(4, 4)
    gates, gradient = gates_and_gradient(scores, cotangent, 16)
    np.testing.assert_allclose(gates, oracle.gates(scores, 16), rtol=1e-3)
    assert np.abs(gates).max() <= 1.01e4
    wanted = oracle.gates_gradient(scores, cotangent, 16)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-2, atol=1e-2 * np.abs(wanted).max())


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("excess", [0.0, 0.03, 0.09, 0.11, 0.3])
def test_a_bounded_gate_has_a_higher_floor(sign, excess):
    scores = np.tile([1.0, -1.0], 8).reshape(4, 4).astype(np.float32)
    scores[0, 0] += sign * 16 * excess
    cotangent, kept = normal(4, 4), jnp.ones((4, 4), bool)
    config = ModelConfig(hidden_size=16, block_size=4, gate_normalization="bounded")
    options = gate_options(config)
    gates, pull = jax.vjp(lambda s: options.values(s, kept), scores)
    np.testing.assert_allclose(gates, oracle.gates(scores, 16, normalization="bounded"), rtol=1e-5)
    assert np.abs(gates).max() <= 10 * 16
    wanted = oracle.gates_gradient(scores, cotangent, 16, normalization="bounded")
    np.testing.assert_allclose(pull(cotangent)[0], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@each_scope
def test_all_zero_scores_give_equal_gates(scope):
    k = 2
    gates = topk_gates(jnp.zeros((R, C)), num_kept=k, scope=scope)
    kept = np.zeros((R, C), bool)
    if scope == "column":
        kept[:k] = True
    else:
        kept[0, :k] = True
    np.testing.assert_array_equal(np.asarray(gates) != 0, kept)
    np.testing.assert_allclose(gates[kept], R * C / kept.sum())


def test_negative_scores_are_kept_when_they_are_the_largest():
    scores = -1.0 - jnp.arange(6.0).reshape(2, 3)
    gates = topk_gates(scores, num_kept=2)
    np.testing.assert_allclose(gates, np.array([[2.0, 4.0, 0], [0, 0, 0]]), rtol=1e-6)


def test_gates_have_the_dtype_of_the_scores_and_are_normalised_in_float32():
    scores = jnp.asarray(normal(R, C), jnp.bfloat16)
    gates = topk_gates(scores, sparsity=0.5)
    assert gates.dtype == jnp.bfloat16
    wanted = oracle.gates(oracle.f64(scores), count(0.5, "matrix"))
    np.testing.assert_allclose(oracle.f64(gates), wanted, rtol=2**-8)


# Hostile scores -------------------------------------------------------------------------------------------------------


def hostile() -> np.ndarray:
    """Scores [n, R + 1, C] with an even number of blocks."""
    shape = (R + 1, C)
    alternating = np.where(np.arange(shape[0] * shape[1]) % 2, -1.0, 1.0).reshape(shape)
    ramp = np.arange(shape[0] * shape[1]).reshape(shape) - (shape[0] * shape[1] - 1) / 2
    rng = np.random.default_rng(0)
    mixtures = [rng.choice([0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 1e-30, -1e-30], shape) for _ in range(24)]
    constants = [np.full(shape, v) for v in (0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 1e-30, -1e-30)]
    patterns = [alternating * v for v in (1.0, 1e30, 1e-30, 40.0)] + [ramp, ramp * 1e30, ramp * 1e-30]
    one = [np.where(np.arange(shape[0] * shape[1]).reshape(shape) == 4, v, 0.0) for v in (1.0, -1.0, 1e30, 1e-30)]
    return np.stack(constants + patterns + one + mixtures).astype(np.float32)


@each_activation
@each_scope
def test_hostile_scores_give_finite_gates_and_gradients(activation, scope):
    scores = hostile()
    for sparsity in (0.0, 0.1, 0.5, 0.99):
        k = count(sparsity, scope, scores.shape[1:])
        for cotangent in (jnp.ones(scores.shape), normal(*scores.shape)):
            gates, gradient = gates_and_gradient(scores, cotangent, k, activation, scope)
            for i, (g, d) in enumerate(zip(gates, gradient, strict=True)):
                assert np.isfinite(g).all(), (sparsity, scores[i])
                assert np.isfinite(d).all(), (sparsity, scores[i])
        assert np.abs(gates).max() <= 1.001e4 * R * C * 2


@each_activation
@each_scope
def test_hostile_scores_give_the_gates_of_the_oracle(activation, scope):
    scores = hostile()
    for sparsity in (0.0, 0.5, 0.99):
        k = count(sparsity, scope, scores.shape[1:])
        gates, _ = gates_and_gradient(scores, np.ones_like(scores), k, activation, scope)
        for i, s in enumerate(np.float64(scores)):
            kept = s[oracle.kept_mask(s, k, scope)]
            # Where rounding decides the sign of a sum that cancels, only finiteness can be asked for.
            total, sizes = abs(math.fsum(kept)), math.fsum(np.abs(kept))
            if activation == "softplus" or total == 0 or total > 1e-3 * sizes:
                wanted = oracle.gates(s, k, activation, scope)
                actual = np.abs(gates[i]) if total == 0 else gates[i]
                wanted = np.abs(wanted) if total == 0 else wanted
                np.testing.assert_allclose(actual, wanted, rtol=1e-3, atol=1e-6, err_msg=str(s))


@each_activation
@pytest.mark.parametrize("value", [1e36, LARGEST, -LARGEST])
def test_the_largest_scores_give_finite_gates_and_gradients(activation, value):
    scores = np.full((8, 6), value, np.float32)
    scores[0, 0] = 0
    for k in (5, 48):
        gates, gradient = gates_and_gradient(scores, normal(8, 6), k, activation)
        np.testing.assert_allclose(gates, oracle.gates(scores, k, activation), rtol=1e-5, atol=1e-6)
        assert np.isfinite(gradient).all()


@each_activation
@pytest.mark.parametrize("value", [1e-38, -1e-38, 1e-45])
def test_the_smallest_scores_give_finite_gates(activation, value):
    scores = np.full((8, 6), value, np.float32)
    scores[0, 0] = 0
    for k in (5, 48):
        assert np.isfinite(gates_and_gradient(scores, normal(8, 6), k, activation)[0]).all()


# Transformations ------------------------------------------------------------------------------------------------------


@each_activation
@each_scope
def test_traced_counts_and_sparsities_equal_static_ones_in_one_compilation(activation, scope):
    scores, traces = normal(4, R, C), []

    @jax.jit
    def by_count(scores, k):
        traces.append("count")
        return topk_gates(scores, num_kept=k, activation=activation, scope=scope)

    @jax.jit
    def by_sparsity(scores, sparsity):
        traces.append("sparsity")
        return topk_gates(scores, sparsity=sparsity, activation=activation, scope=scope)

    for sparsity in (0.0, 0.1, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.99):
        k = count(sparsity, scope)
        wanted = oracle.gates(scores, k, activation, scope)
        for gates in (by_count(scores, jnp.int32(k)), by_sparsity(scores, jnp.float32(sparsity))):
            np.testing.assert_array_equal(np.asarray(gates) != 0, wanted != 0)
            np.testing.assert_allclose(gates, wanted, rtol=1e-3, atol=1e-5)
    static = jax.jit(lambda s: topk_gates(s, sparsity=0.4, activation=activation, scope=scope))(scores)
    np.testing.assert_allclose(by_sparsity(scores, jnp.float32(0.4)), static, rtol=1e-5)
    assert sorted(traces) == ["count", "sparsity"]


@pytest.mark.parametrize(
    ("activation", "scope"), [*((activation, "matrix") for activation in ACTIVATIONS), ("softplus", "column")]
)
def test_jit_vmap_and_leading_dimensions_agree(activation, scope):
    scores = normal(2, 3, R, C)
    gates = functools.partial(topk_gates, sparsity=0.4, activation=activation, scope=scope)
    eager = gates(scores)
    np.testing.assert_allclose(jax.jit(gates)(scores), eager, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.vmap(gates)))(scores), eager, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(gates)(scores[1, 2]), eager[1, 2], rtol=1e-5)


def test_vmap_over_scores_and_counts():
    scores, counts = normal(4, R, C), jnp.array([1, 4, 9, 15])
    mapped = jax.jit(jax.vmap(lambda s, k: topk_gates(s, num_kept=k, activation="softplus")))(scores, counts)
    for i, k in enumerate(counts.tolist()):
        np.testing.assert_allclose(mapped[i], oracle.gates(scores[i], k, "softplus"), rtol=1e-5)


def test_gradients_of_vmap_and_scan():
    scores, cotangent = normal(4, R, C), normal(4, R, C, seed=1)
    gates = functools.partial(topk_gates, num_kept=6, activation="softplus")
    wanted = oracle.gates_gradient(scores, cotangent, 6, "softplus")
    for mapped in (jax.vmap(gates), lambda s: jax.lax.scan(lambda c, a: (c, gates(a)), 0, s)[1]):
        gradient = jax.jit(jax.grad(lambda s, mapped=mapped: (mapped(s) * cotangent).sum()))(scores)
        np.testing.assert_allclose(gradient, wanted, rtol=1e-3, atol=1e-5)


def test_no_examples_have_no_gates():
    assert jax.vmap(lambda s: topk_gates(s, sparsity=0.5))(jnp.ones((0, R, C))).shape == (0, R, C)
    assert jax.vmap(lambda s, k: topk_gates(s, num_kept=k))(jnp.ones((0, R, C)), jnp.ones(0, int)).shape == (0, R, C)


@pytest.mark.parametrize(
    ("activation", "normalization"),
    [p for p in itertools.product(ACTIVATIONS, ("mean", "bounded", "none")) if p != ("softmax", "none")],
)
def test_gates_are_normalised_as_models_have_it(activation, normalization):
    scores = np.tile([1.0, -0.9], 8).reshape(4, 4).astype(np.float32)
    gates = topk_gates(scores, sparsity=0.0, activation=activation, normalization=normalization)
    wanted = oracle.gates(scores, 16, activation, normalization=normalization)
    np.testing.assert_allclose(gates, wanted, rtol=1e-5)


# Scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_float32(rank, dtype):
    gate = init_gate(jax.random.key(0), 6, R * C, rank)
    assert {a.dtype for a in gate.values()} == {jnp.dtype("float32")}
    x = jnp.asarray(normal(2, 3, 6), dtype)
    scores = gate_scores(gate, x, (R, C))
    assert scores.dtype == jnp.float32
    wanted = np.stack([oracle.gate_scores(oracle.f64(gate), oracle.f64(row)) for row in x])
    np.testing.assert_allclose(scores, wanted.reshape(2, 3, R, C), atol=1e-5 if dtype == "float32" else 0.02)


@pytest.mark.parametrize("source", ["learned", "frozen", "bias", "random"])
def test_a_gate_is_made_and_asked_by_its_source(source):
    gate = init_gate(jax.random.key(0), 6, np.int64(R * C), source=source)
    scores = gate_scores(gate, normal(2, 6), (R, C), source)
    assert scores.shape == (2, R, C)
    assert (scores[0] == scores[1]).all() == (source == "bias")


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "sparsity.*num_kept"),
        ({"sparsity": 0.5, "num_kept": 3}, "sparsity.*num_kept"),
        ({"num_kept": 0}, "num_kept is 0"),
        ({"num_kept": -2}, "num_kept is -2"),
        ({"num_kept": R * C + 1}, f"num_kept is {R * C + 1}"),
        ({"num_kept": R + 1, "scope": "column"}, f"num_kept is {R + 1}"),
        ({"sparsity": 0.5, "activation": "gelu"}, "gelu.*linear.*softplus.*softmax.*relu"),
        ({"sparsity": 0.5, "scope": "row"}, "row.*matrix.*column"),
        ({"sparsity": 0.5, "normalization": "l2"}, "normalization is 'l2'; .*mean, bounded, none"),
        ({"sparsity": 0.5, "normalization": None}, "normalization is None"),
        ({"sparsity": 0.5, "activation": "softmax", "normalization": "none"}, "'none'.*'softmax'.*take 'mean'"),
        ({"sparsity": [0.5]}, r"sparsity is \[0.5\]"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, named):
    with pytest.raises(ValueError, match=f"{named}.*\\."):
        topk_gates(jnp.ones((R, C)), **arguments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(), (5,)])
def test_scores_without_two_dimensions_are_refused(shape):
    with pytest.raises(ValueError, match=r"scores.*shape.*\."):
        topk_gates(jnp.ones(shape), sparsity=0.5)


@pytest.mark.usefixtures("unchecked")
def test_scores_that_are_no_array_are_refused():
    with pytest.raises(ValueError, match=r"scores is a list; it must be an array\."):
        topk_gates([[1.0, 2.0]], sparsity=0.5)


KEY = jax.random.key(0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda: init_gate(0, 6, 15), "key is 0"),
        (lambda: init_gate(jax.random.split(KEY), 6, 15), r"key is an array of shape \(2,\)"),
        (lambda: init_gate(KEY, 0, 15), "num_features is 0"),
        (lambda: init_gate(KEY, 6, 1.5), "num_blocks is 1.5"),
        (lambda: init_gate(KEY, 6, 15, 0), "rank is 0"),
        (lambda: init_gate(KEY, 6, 15, source="oracle"), "source is 'oracle'"),
        (lambda: gate_scores(init_gate(KEY, 7, 15), jnp.ones((2, 6)), (R, C)), "kernel.*7.*x of 6 features"),
        (lambda: gate_scores(init_gate(KEY, 6, 14), jnp.ones((2, 6)), (R, C)), "14.*5 x 3 blocks"),
        (lambda: gate_scores(init_gate(KEY, 6, 15), jnp.ones((2, 6)), (R, C), "bias"), "the gate 'bias' has"),
        (lambda: gate_scores({"up": jnp.ones((2, 15))}, jnp.ones((2, 6)), (R, C)), "make them with init_gate"),
        (lambda: gate_scores([1.0], jnp.ones((2, 6)), (R, C)), "params is a list"),
        (lambda: gate_scores({"bias": [1.0]}, jnp.ones((2, 6)), (R, C)), r"params\['bias'\] is a list"),
        (lambda: gate_scores(init_gate(KEY, 6, 15), jnp.ones((2, 6), int), (R, C)), "x has shape.*int32"),
        (lambda: gate_scores(init_gate(KEY, 6, 15), jnp.ones((2, 6)), 15), "grid is 15"),
        (lambda: gate_scores(init_gate(KEY, 6, 15), jnp.ones((2, 6)), (15, 0)), r"grid\[1\] is 0"),
    ],
)
def test_gates_that_do_not_fit_are_refused(function, named):
    with pytest.raises(ValueError, match=f"{named}.*\\."):
        function()
