"""Training on a mesh of several devices is training on one: same losses, same blocks, the collectives one expects."""

import dataclasses
import functools
import math
import os
import re
import signal
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run
from jax.sharding import PartitionSpec as P

from bwds.collectives import MODEL, all_gather_columns, local_columns, look_up
from bwds.config import Config, ModelConfig, OptimConfig, TrainConfig
from bwds.data.batches import train_batch
from bwds.linear import apply_linear, gate_options, init_linear
from bwds.losses import cross_entropy
from bwds.model import language_model
from bwds.training import train
from bwds.training.devices import MeshConfig
from bwds.training.evaluation import evaluate
from bwds.training.metrics import METRICS_FILE, MetricsWriter, read_metrics
from bwds.training.optim import Optimizer, make_optimizer
from bwds.training.pruning import hold_fixed
from bwds.training.sharding import Placement, make_placement, over_devices
from bwds.training.signals import InterruptedRunError
from bwds.training.step import TrainState, init_state, train_step

BATCH, TIME, WORDS, STEPS = 8, 6, 32, 50
LSTM = ModelConfig(vocab_size=WORDS, hidden_size=32, num_layers=1, block_size=16, dropout=0.2)
# This one has what the first lacks: a low-rank gate, whose sum is safe; one matrix for embedding and softmax; one mask
# a window; two layers; dropout of tokens and weights; penalties; averaged parameters.
QRNN = dataclasses.replace(
    LSTM,
    cell="qrnn",
    num_layers=2,
    gate_rank=4,
    gate_activation="softplus",
    tied_softmax=True,
    locked_dropout=True,
    embedding_dropout=0.1,
    weight_dropout=0.2,
)
OTHERS = {
    "magnitude": dataclasses.replace(LSTM, method="magnitude", sparsity=0.8),
    "magnitude of blocks": dataclasses.replace(
        QRNN, method="magnitude", magnitude_unit="block", sparsity=0.8, tied_softmax=False
    ),
    "static-block": dataclasses.replace(LSTM, method="static-block", block_size=8, sparsity=0.75),
    "dense": dataclasses.replace(QRNN, method="dense"),
    "frozen": dataclasses.replace(QRNN, gate_source="frozen"),
    "bias": dataclasses.replace(LSTM, gate_source="bias"),
    "norm": dataclasses.replace(QRNN, gate_source="norm", gate_rank=None),
    # This has also a vocabulary that two devices cannot share.
    "random": dataclasses.replace(LSTM, gate_source="random", vocab_size=WORDS + 1),
}
MESHES = {"data=8": MeshConfig(8, 1), "data=4,model=2": MeshConfig(4, 2), "data=2,model=4": MeshConfig(2, 4)}
IDS = np.random.default_rng(0).integers(0, WORDS, 3000).astype(np.int32)


def optimizer(config: ModelConfig, steps: int) -> Optimizer:
    extras = {"activation_penalty": 2.0, "temporal_activation_penalty": 1.0, "ema_decay": 0.9} if config is QRNN else {}
    options = OptimConfig(name="adamw", learning_rate=2e-3, warmup_steps=5, weight_decay=0.1, **extras)
    schedule = TrainConfig(steps=steps, sparsity_begin=0.25, sparsity_end=0.75, sparsity_every=2)
    return hold_fixed(make_optimizer(options, steps), Config(model=config, train=schedule))


def placed(mesh: MeshConfig | None, config: ModelConfig) -> Placement | None:
    return None if mesh is None else make_placement(mesh, config, batch_size=BATCH)


def fresh(placement: Placement | None, config: ModelConfig, steps: int = STEPS) -> TrainState:
    return init_state(
        language_model(config), optimizer(config, steps), jax.random.key(0), batch_size=BATCH, placement=placement
    )


def curve(mesh: MeshConfig | None, config: ModelConfig, steps: int):
    """Losses, gradient norms and densities [steps, 3], and the last state."""
    placement = placed(mesh, config)
    state, shown = fresh(placement, config, steps), []
    for step in range(steps):
        batch = train_batch(IDS, step, batch_size=BATCH, sequence_length=TIME)
        arrays = [batch.inputs, batch.targets]
        if placement is not None:
            arrays = [placement.spread_rows(a.shape, lambda rows, a=a: a[rows]) for a in arrays]
        end, rule = np.bool_(batch.new_epoch), optimizer(config, steps)
        state, metrics = train_step(language_model(config), rule, state, *arrays, end, None, placement)
        # As in the training loop, at most two steps are under way. With eight, all of XLA's threads for CPU devices
        # ended up waiting for each other.
        jax.block_until_ready(shown[-1:])
        shown.append([metrics.loss, metrics.gradient_norm, metrics.density])
    return np.array(jax.device_get(shown)), state


alone = functools.cache(functools.partial(curve, None))


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("config", "mesh", "steps"),
    [
        (LSTM, "data=8", 12),
        (QRNN, "data=4,model=2", 12),
        *(slow(LSTM, mesh, 50) for mesh in MESHES),
        slow(QRNN, "data=4,model=2", 50),
    ],
    ids=lambda value: value.cell if isinstance(value, ModelConfig) else None,
)
def test_losses_are_those_of_one_device(config, mesh, steps):
    """All agree to 1e-5, dropout included; gradients of the first steps to rounding."""
    expected, _ = alone(config, steps)
    got, state = curve(MESHES[mesh], config, steps)
    np.testing.assert_allclose(got[:, 0], expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(got[:5, 1:], expected[:5, 1:], rtol=2e-6)
    assert expected[-1, 0] != expected[0, 0]
    kernel = state.params["layer_0"]["input"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (kernel.shape[0], kernel.shape[1] // MESHES[mesh].model)


@pytest.mark.parametrize("name", [name if name == "magnitude" else slow(name) for name in OTHERS])
def test_baselines_and_controls_on_a_mesh(name):
    """The same losses and densities, and the same zeros, with the state of the optimiser spread too."""
    config = OTHERS[name]
    (expected, whole), (got, spread) = (curve(m, config, 8) for m in (None, MeshConfig(4, 2, shard_optimizer=True)))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(whole.params), jax.tree.leaves(spread.params), strict=True):
        np.testing.assert_array_equal(one == 0, other == 0)
    sparsity = 0.0 if config.method == "dense" else config.sparsity
    assert got[-1, 2] == pytest.approx(1 - sparsity, abs=0.01)


def on_the_first_device(tree: Any) -> int:
    """Numbers of a tree that it holds."""
    return sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(tree))


def test_all_that_steps_change_is_spread_on_request():
    state, usual = (fresh(placed(MeshConfig(4, 2, shard), QRNN), QRNN) for shard in (True, False))
    mu = state.opt_state[1][0].mu
    for tree in (state.params, mu, state.average):
        kernel = tree["layer_0"]["input"]["kernel"]
        assert kernel.addressable_shards[0].data.shape == (kernel.shape[0] // 4, kernel.shape[1] // 2)
        assert on_the_first_device(tree) < 0.27 * on_the_first_device(usual.params)


def test_shards_hold_whole_blocks_and_words():
    placement = placed(MeshConfig(2, 4), LSTM)
    specs = placement.specs(fresh(None, LSTM))
    layer = specs.params["layer_0"]["hidden"]
    assert layer == {"kernel": P(None, MODEL), "gate": {"kernel": P(), "bias": P()}}
    assert specs.params["softmax"] == {"kernel": P(None, MODEL), "bias": P(MODEL)}
    assert specs.params["embedding"] == P(MODEL)
    assert jax.tree.leaves(specs.carry, is_leaf=lambda leaf: isinstance(leaf, P)) == [P("data")] * 2
    assert specs.key == specs.step == P()
    odd = placed(MeshConfig(2, 4), LSTM).specs(fresh(None, OTHERS["random"])).params
    assert odd["embedding"] == odd["softmax"]["kernel"] == odd["softmax"]["bias"] == P()
    one = placed(MeshConfig(1, 1), LSTM)
    assert set(jax.tree.leaves(one.specs(fresh(None, LSTM)), is_leaf=lambda leaf: isinstance(leaf, P))) == {P()}


@pytest.mark.parametrize(
    ("scope", "rank", "activation"),
    [
        ("matrix", None, "softplus"),
        ("matrix", 8, "softplus"),
        ("column", None, "softplus"),
        ("matrix", None, "softmax"),
        ("column", None, "relu"),
    ],
)
def test_spread_columns_keep_the_same_blocks(scope, rank, activation):
    """Each device gets the same choice as a device alone, over the whole matrix, and computes its own columns."""
    config = dataclasses.replace(LSTM, gate_scope=scope, gate_activation=activation, block_size=8)
    options = gate_options(config)
    params = init_linear(jax.random.key(1), 32, 128, bound=0.3, options=options, gate_rank=rank)
    x = jax.random.normal(jax.random.key(2), (8, 32))
    placement = placed(MeshConfig(2, 4), config)

    def call(params, x):
        y, gating = apply_linear(params, x, options, 9 if scope == "matrix" else 2)
        return all_gather_columns(y), gating, local_columns(gating.gates, params["kernel"])

    specs = placement.specs({"params": params})["params"]
    spread = over_devices(placement, call, (specs, P("data")), (P("data"), P("data"), P("data", None, MODEL)))
    y, gating, own = jax.jit(spread)(params, x)
    expected_y, expected, _ = jax.jit(call)(params, x)
    np.testing.assert_array_equal(gating.kept, expected.kept)
    np.testing.assert_allclose(gating.gates, expected.gates, rtol=1e-5)
    np.testing.assert_array_equal(own, gating.gates)
    np.testing.assert_allclose(y, expected_y, rtol=1e-4, atol=1e-5)


def test_words_spread_over_devices():
    """Embedding and cross-entropy against their plain forms, and gradients; tokens far apart in probability too."""
    table, logits = (50 * jax.random.normal(jax.random.key(i), (3, 5, 32)) for i in (0, 1))
    table, words = table[0].repeat(6, 0)[:24], jax.random.randint(jax.random.key(2), (3, 5), 0, 24)
    placement = placed(MeshConfig(1, 4), dataclasses.replace(LSTM, vocab_size=24))

    def call(table, logits):
        out = look_up(table, words), cross_entropy(logits, words)
        return (jnp.sin(out[0])[..., 0] * out[1]).sum(), out

    spread = over_devices(placement, call, (P(MODEL), P(None, None, MODEL)), (P(), (P(), P())))
    both = functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    (_, (rows, losses)), gradients = jax.jit(both(spread))(table, logits[..., :24])
    np.testing.assert_array_equal(rows, table[words])
    reference = optax.softmax_cross_entropy_with_integer_labels(logits[..., :24], words)
    np.testing.assert_allclose(losses, reference, rtol=1e-6, atol=1e-6)
    _, expected = jax.jit(both(call))(table, logits[..., :24])
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


COLLECTIVES = r"= .*? (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("


def collectives(mesh: MeshConfig, config: ModelConfig) -> tuple[dict[str, int], TrainState]:
    """Numbers in the results of each kind of collective in the compiled step, and the state before."""
    placement = placed(mesh, config)
    state = fresh(placement, config)
    tokens = placement.spread_rows((BATCH, TIME), lambda rows: np.zeros((BATCH, TIME), np.int32)[rows])
    lowered = train_step.lower(
        language_model(config), optimizer(config, STEPS), state, tokens, tokens, np.bool_(False), None, placement
    )
    counts = Counter()
    for line in lowered.compile().as_text().splitlines():
        if found := re.search(COLLECTIVES, line):
            shapes = re.findall(r"f32\[([\d,]*)\]", line[: found.start(1)])
            counts[found.group(1)] += sum(math.prod(int(n) for n in shape.split(",") if n) for shape in shapes)
    return counts, state


def test_data_parallel_step_only_adds_up_gradients():
    """The compiled step holds all-reduces alone, over no more numbers than parameters, loss and density."""
    counts, state = collectives(MeshConfig(8, 1), LSTM)
    assert counts == {"all-reduce": sum(leaf.size for leaf in jax.tree.leaves(state.params)) + 2}


def test_a_fully_sharded_step_gathers_parameters_and_scatters_gradients():
    """Each once. Loss, density and two numbers a gradient are added up too, for the norms that clip and are shown."""
    counts, state = collectives(MeshConfig(8, 1, shard_optimizer=True), LSTM)
    shares = on_the_first_device(state.params)
    added = 2 + 2 * len(jax.tree.leaves(state.params))
    assert counts == {"all-gather": 8 * shares, "reduce-scatter": shares, "all-reduce": added}


def test_a_mesh_of_one_device_changes_nothing():
    state, tokens = fresh(None, LSTM), np.zeros((BATCH, TIME), np.int32)
    arguments = (language_model(LSTM), optimizer(LSTM, STEPS), state, tokens, tokens, np.bool_(False), None)
    text = train_step.lower(*arguments, placed(MeshConfig(1, 1), LSTM)).as_text()
    assert text == train_step.lower(*arguments).as_text()


@pytest.mark.parametrize("mesh", [MESHES["data=8"], MESHES["data=2,model=4"]], ids=["data", "both"])
def test_evaluation_counts_every_token_once(mesh):
    """Also where rows are added to fill the mesh."""
    config = tiny_run.config(None, eval_batch_size=3).data
    params, ids = language_model(LSTM).init(jax.random.key(0)), IDS[:200]
    expected = evaluate(language_model(LSTM), params, ids, config, 0)
    placement = placed(mesh, LSTM)
    spread = jax.device_put(params, placement.shardings(params))
    got = evaluate(language_model(LSTM), spread, ids, config, 0, placement=placement)
    assert got[:3] == pytest.approx(expected[:3], rel=1e-6)
    assert got.usage.keys() == expected.usage.keys()
    for used in got.usage.values():
        assert used.mean() == pytest.approx(got.density)


@pytest.mark.slow
def test_a_run_goes_on_with_another_mesh(tmp_path, monkeypatch):
    """Stopped on 8 devices, then on 4, finished on one: no other run, and the same numbers."""
    corpus = tiny_run.write_corpus(tmp_path / "text")
    # Linear gates of so few blocks divide by sums near zero, here 3e-3: rounding of 1e-7 is 1e-4 of the second gradient
    # and another choice of blocks two steps later, on any devices. Those of softplus stay within 1e-6 for all steps.
    changes = {
        "eval_every": 4,
        "checkpoint_every": 3,
        "vocab_limit": 32,
        "gate_activation": "softplus",
        "batch_size": 8,
    }
    config = tiny_run.config(corpus, steps=8, **changes)
    moved, write, stop_at = tmp_path / "moved", MetricsWriter.write, 0

    def write_and_signal(self, **values):
        write(self, **values)
        if values["step"] == stop_at and values["split"] == "train":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsWriter, "write", write_and_signal)
    for stop_at, mesh in ((3, MeshConfig(8, 1)), (6, MeshConfig(2, 2, shard_optimizer=True))):
        with pytest.raises(InterruptedRunError, match=f"Stopped after step {stop_at} of 8"):
            train(config, moved, mesh=mesh, progress=False)
    stop_at = 0
    expected = train(config, tmp_path / "alone", progress=False)
    got = train(config, moved, progress=False)
    losses = [
        [line["loss"] for line in read_metrics(workdir / METRICS_FILE)] for workdir in (tmp_path / "alone", moved)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert got["validation_perplexity"] == pytest.approx(expected["validation_perplexity"], rel=1e-5)
    assert (moved / "config.json").read_text() == (tmp_path / "alone" / "config.json").read_text()


@pytest.mark.parametrize(
    ("mesh", "config", "message"),
    [
        (MeshConfig(16, 1), LSTM, "need 16 devices and there are 8; .* With JAX_NUM_CPU_DEVICES=16 in the environment"),
        (MeshConfig(None, 9), LSTM, "mesh.model is 9 and there are 8 devices"),
        (MeshConfig(None, 3), LSTM, "mesh.model is 3, which does not divide the 8 devices"),
        (MeshConfig(3, 1), LSTM, "mesh.data is 3, which does not divide the 8 rows of the batch"),
        (MeshConfig(1, 5), LSTM, "does not divide the 8 columns of blocks"),
    ],
)
def test_meshes_that_do_not_fit(mesh, config, message):
    with pytest.raises(ValueError, match=message):
        make_placement(mesh, config, batch_size=BATCH)


def test_a_mesh_that_nobody_gave_is_not_said_to_be_given():
    with pytest.raises(ValueError, match=r"^mesh\.data is 4 \(the default for 8 devices\), which does not divide"):
        make_placement(MeshConfig(model=2), LSTM, batch_size=6)


def test_an_option_that_changes_nothing_is_said(capsys):
    make_placement(MeshConfig(2, 1, shard_optimizer=True), LSTM, batch_size=BATCH)
    assert capsys.readouterr().err == ""
    make_placement(MeshConfig(1, 2, shard_optimizer=True), LSTM, batch_size=BATCH)
    assert "mesh.shard_optimizer changes nothing" in capsys.readouterr().err


def test_all_devices_are_taken():
    assert dict(make_placement(MeshConfig(), LSTM, batch_size=BATCH).mesh.shape) == {"data": 8, "model": 1}
    assert dict(make_placement(MeshConfig(None, 2), LSTM, batch_size=BATCH).mesh.shape) == {"data": 4, "model": 2}
    with pytest.raises(ValueError, match=r"^model is 0"):
        MeshConfig(1, 0)
