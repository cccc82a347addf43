"""Gates that do not learn from the input: a frozen projection, a bias alone, a hash of the input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import test_lstm
import test_qrnn
from jax import lax

from bwds.config import Config, ModelConfig, OptimConfig
from bwds.gating import gate_scores, init_gate
from bwds.hashing import hashed_scores
from bwds.linear import GateOptions, apply_linear, init_linear
from bwds.model import language_model
from bwds.training.optim import make_optimizer
from bwds.training.pruning import hold_fixed
from bwds.training.step import init_state, train_step

CELLS = {"lstm": (test_lstm, oracle.lstm, "h"), "qrnn": (test_qrnn, oracle.qrnn, "last")}
CONTROLS = ["frozen", "bias", "random"]


def mix(h):
    """The 32-bit finaliser of MurmurHash3, on Python integers."""
    h = (h ^ h >> 16) * 0x85EBCA6B % 2**32
    h = (h ^ h >> 13) * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def hashes(x, num_blocks):
    """``hashed_scores`` of x [B, K], number by number."""
    rows = [mix(sum(mix(k + 1) for k, value in enumerate(row) if value > 0) % 2**32) for row in np.asarray(x)]
    return np.array([[mix((row + mix(n + 1)) % 2**32) >> 8 for n in range(num_blocks)] for row in rows])


def as_the_oracle_wants_it(tree, source):
    """Parameters in which a gate that is a bias has a projection as well, of zeros."""
    if not isinstance(tree, dict):
        return tree
    tree = {name: as_the_oracle_wants_it(value, source) for name, value in tree.items()}
    if source == "bias" and "gate" in tree:
        zeros = np.zeros((tree["kernel"].shape[0], tree["gate"]["bias"].size))
        tree["gate"] = {"kernel": zeros, **tree["gate"]}
    return tree


@pytest.mark.parametrize(("cell", "scope"), [("lstm", "matrix"), ("qrnn", "column")])
@pytest.mark.parametrize("source", CONTROLS)
def test_layers_and_their_gradients(cell, source, scope, monkeypatch):
    module, layer, first = CELLS[cell]
    config = module.configuration("linear", gate_source=source, gate_scope=scope)
    rules = module.rules(config)
    a = module.arguments(config)
    if source == "random":
        (grid,) = {(rule.rows, rule.columns) for rule in rules.values()}
        monkeypatch.setattr(oracle, "gate_scores", lambda gate, x: hashes(x, grid[0] * grid[1]).astype(float))

        def equal_gates(scores, num_kept, activation, scope, normalization):
            kept = np.stack([oracle.kept_mask(s, num_kept, scope) for s in scores])
            return kept * (kept[0].size / kept[0].sum())

        monkeypatch.setattr(oracle, "gates", equal_gates)

    def run(a):
        a = as_the_oracle_wants_it(a, source)
        return layer(a["params"], a["x"], (a[first], a["c"]), rules)

    (outputs, _, usage), gradients = module.value_and_gradients(config, a)
    trace = run(oracle.f64(a))
    assert trace.margin > 1e-4
    np.testing.assert_allclose(outputs, trace.outputs, atol=2e-4)
    oracle.assert_close(usage, {name: (g != 0).mean((0, 1)) for name, g in trace.gates.items()}, tolerance=1e-6)
    if source == "bias":
        assert all(set(np.unique(u)) <= {0.0, 1.0} for u in usage.values()), "the same blocks for every input"

    wanted = oracle.slopes(lambda a: module.weighted(*run(a)[:2]), a)
    for name in rules:
        gate = wanted["params"][name]["gate"]
        assert (source == "random") == (gate == {})
        if source == "frozen":
            assert all(np.abs(v.gains).min() > 0 for v in gate.values())
            wanted["params"][name]["gate"] = {k: v._replace(gains=np.zeros_like(v.gains)) for k, v in gate.items()}
    oracle.assert_slopes(gradients, wanted, tolerance=2e-3)


@pytest.mark.parametrize("shape", [(5, 8), (1, 300), (7, 33)])
def test_hash_against_python(shape):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    np.testing.assert_array_equal(hashed_scores(x, 20), hashes(x, 20))


def test_hash_is_a_function_of_the_signs_under_every_transformation():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3, 64)), jnp.float32)
    scores = hashed_scores(x, 96)
    assert scores.shape == (6, 3, 96)
    assert scores.dtype == jnp.float32
    run = functools.partial(hashed_scores, num_blocks=96)
    one_by_one = lax.scan(lambda _, row: (None, run(row)), None, x)[1]
    for other in (jax.jit(run)(x), jax.vmap(jax.vmap(run))(x), one_by_one, run(x.astype(jnp.bfloat16)), run(3.5 * x)):
        np.testing.assert_array_equal(scores, other)
    flipped = hashed_scores(x.at[2, 1, 40].multiply(-1), 96)
    changed = np.asarray(flipped != scores).mean(-1)
    assert changed[2, 1] > 0.99
    assert changed.sum() == changed[2, 1]
    assert not jax.grad(lambda x: run(x).sum())(x).any()


def test_hash_uses_all_blocks_alike():
    rows, blocks = 4000, 48
    x = jnp.asarray(np.random.default_rng(2).normal(size=(rows, 16)), jnp.float32)
    scores = np.asarray(hashed_scores(x, blocks))
    kept = scores > np.median(scores, axis=1, keepdims=True)
    # Half of the rows for every block, and a quarter for every pair, within five standard deviations.
    together = kept.T.astype(float) @ kept / rows
    np.testing.assert_allclose(np.diag(together), 0.5, atol=5 * 0.5 / rows**0.5)
    pairs = together[~np.eye(blocks, dtype=bool)]
    np.testing.assert_allclose(pairs, 0.25 * (1 - 1 / (blocks - 1)), atol=5 * 0.43 / rows**0.5)
    assert scores.min() >= 0
    assert scores.max() < 2**24


@pytest.mark.parametrize("activation", ["linear", "softplus"])
def test_random_gates_are_equal(activation):
    options = GateOptions((4, 6), activation, source="random")
    params = init_linear(jax.random.key(0), 16, 24, bound=0.25, options=options, gate_rank=None)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(9, 16)), jnp.float32)
    _, gating = apply_linear(params, x, options, 5)
    assert (np.asarray(gating.kept).sum((1, 2)) == 5).all()
    np.testing.assert_allclose(gating.gates, np.where(gating.kept, 24 / 5, 0.0), rtol=1e-6)


def test_parameters_of_each_source():
    made = {source: init_gate(jax.random.key(0), 8, 6, 2, source) for source in ("learned", *CONTROLS)}
    assert made["random"] == {}
    assert made["bias"].keys() == {"bias"}
    for source in ("frozen", "bias"):
        for name, value in made[source].items():
            np.testing.assert_array_equal(value, made["learned"][name])


def test_a_bias_gives_every_row_its_scores():
    gate = {"bias": jnp.arange(6.0)}
    for shape in ((3,), (2, 3), (4, 2, 3)):
        scores = gate_scores(gate, jnp.ones(shape, jnp.bfloat16), (2, 3), "bias")
        assert scores.dtype == jnp.float32
        np.testing.assert_array_equal(scores, np.broadcast_to(np.arange(6.0).reshape(2, 3), (*shape[:-1], 2, 3)))


@pytest.mark.parametrize(("cell", "name"), [("lstm", "adamw"), ("qrnn", "sgd")])
@pytest.mark.parametrize("source", CONTROLS)
def test_what_training_changes(cell, source, name):
    """With a rank, and with weight decay, which would move a parameter that has no gradient."""
    model = ModelConfig(vocab_size=9, hidden_size=8, block_size=4, cell=cell, gate_rank=2, gate_source=source)
    optim = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.5, warmup_steps=1)
    config = Config(model=model, optim=optim)
    lm, optimizer = language_model(model), hold_fixed(make_optimizer(optim, 10), config)
    state = init_state(lm, optimizer, jax.random.key(0), batch_size=2)
    before = jax.tree.map(np.asarray, state.params)
    tokens = np.random.default_rng(0).integers(9, size=(2, 5), dtype=np.int32)
    for _ in range(3):
        state, _ = train_step(lm, optimizer, state, tokens[:, :-1], tokens[:, 1:], np.bool_(False), None)
    gates = 0
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(state.params), strict=True
    ):
        is_gate = any(key.key == "gate" for key in path)
        gates += is_gate
        assert np.array_equal(old, new) == (is_gate and source == "frozen"), jax.tree_util.keystr(path)
    products = 4 if cell == "lstm" else 2
    assert gates == products * {"frozen": 3, "bias": 1, "random": 0}[source]


@pytest.mark.parametrize(("cell", "dtype"), [("lstm", "bfloat16"), ("qrnn", "float32")])
@pytest.mark.parametrize("source", CONTROLS)
def test_training_and_evaluation_choose_alike(cell, source, dtype):
    """A window, its steps one by one, and a batch of one: the same blocks, so the same logits."""
    model = ModelConfig(
        vocab_size=9,
        hidden_size=16,
        block_size=4,
        cell=cell,
        gate_source=source,
        dtype=dtype,
        gate_activation="softplus",
    )
    lm = language_model(model)
    params = lm.init(jax.random.key(1))
    tokens = np.random.default_rng(0).integers(9, size=(3, 6), dtype=np.int32)
    run = jax.jit(lm.apply)
    logits, _, info = run(params, tokens, lm.init_carry(3))
    carry, steps = lm.init_carry(1), []
    for t in range(6):
        step, carry, _ = run(params, tokens[:1, t : t + 1], carry)
        steps.append(step)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(jnp.concatenate(steps, 1)[0], logits[0], atol=tolerance)
    assert float(info.density) == pytest.approx(0.5)
