"""Weights that training holds at zero: exactly as many as asked for, exactly zero, and for good."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run

from bwds.config import Config, ModelConfig, OptimConfig, TrainConfig
from bwds.cost import cost
from bwds.counts import num_kept_blocks
from bwds.model import language_model, recurrent_kernels, static_mask
from bwds.training import loop, train
from bwds.training.checkpoint import best_checkpoints
from bwds.training.evaluation import eval_step
from bwds.training.metrics import read_metrics
from bwds.training.optim import make_optimizer, sparsity_at
from bwds.training.pruning import hold_fixed, magnitude_pruning
from bwds.training.step import init_state, train_step
from bwds.training.trained import load_params

H, V, STEPS = 16, 11, 14
UNITS = {"weight": 1, "block": 4}
OPTIMIZERS = {
    "adamw": OptimConfig(name="adamw", learning_rate=0.02, weight_decay=0.3, warmup_steps=2),
    "sgd": OptimConfig(name="sgd", learning_rate=2.0),
}


def configuration(*, optimizer="adamw", **model):
    return Config(
        model=ModelConfig(
            **{"vocab_size": V, "hidden_size": H, "num_layers": 1, "block_size": 4, "sparsity": 0.7, **model}
        ),
        optim=OPTIMIZERS[optimizer],
        # Changes at steps 2, 5 and 8.
        train=TrainConfig(steps=STEPS, sparsity_begin=2 / STEPS, sparsity_end=9 / STEPS, sparsity_every=3),
    )


@functools.cache
def states(config, *, scale=1.0):
    """The states before training and after each step; from the fifth on with a factor of the plateau rule."""
    lm = language_model(config.model)
    optimizer = hold_fixed(make_optimizer(config.optim, config.train.steps), config)
    state = init_state(lm, optimizer, jax.random.key(3), batch_size=2)
    tokens = np.random.default_rng(0).integers(V, size=(STEPS, 2, 6), dtype=np.int32)
    found = [state]
    for i in range(STEPS):
        if i == 4:
            state = state._replace(plateau=state.plateau._replace(scale=jnp.float32(scale)))
        state, metrics = train_step(
            lm, optimizer, jax.tree.map(jnp.copy, state), tokens[i, :, :-1], tokens[i, :, 1:], np.bool_(False), None
        )
        assert np.isfinite(metrics.loss)
        found.append(state)
    return found


def block_view(kernel, size):
    """[R, size, C, size]"""
    return np.asarray(kernel).reshape(kernel.shape[0] // size, size, kernel.shape[1] // size, size)


@pytest.mark.parametrize(("cell", "optimizer"), [("lstm", "sgd"), ("qrnn", "adamw")])
@pytest.mark.parametrize("unit", UNITS)
def test_sparsity_is_exact_after_every_step(cell, unit, optimizer):
    config = configuration(cell=cell, method="magnitude", magnitude_unit=unit, optimizer=optimizer)
    changed = []
    before = None
    for step, state in enumerate(states(config, scale=0.3)):
        kernels = recurrent_kernels(state.params)
        assert len(kernels) == (2 if cell == "lstm" else 1)
        zero = {name: (block_view(k, UNITS[unit]) == 0).all((1, 3)) for name, k in kernels.items()}
        for name, kernel in kernels.items():
            pruned = zero[name].size - num_kept_blocks(zero[name].size, sparsity_at(config, step))
            assert zero[name].sum() == pruned
            # Whole blocks, and nothing besides them.
            assert (np.asarray(kernel) == 0).sum() == pruned * UNITS[unit] ** 2
            np.testing.assert_array_equal(state.opt_state.masks[name], ~zero[name])
            if before is not None:
                assert not (before[name] & ~zero[name]).any(), "a pruned weight came back"
        if before is not None and any((zero[name] != before[name]).any() for name in zero):
            changed.append(step)
        before = zero
    assert changed == [2, 5, 8]
    assert sparsity_at(config, 8) == sparsity_at(config, STEPS) == 0.7


@pytest.mark.parametrize("method", ["magnitude", "static-block"])
def test_only_recurrent_matrices_have_zeros(method):
    *_, last = states(configuration(method=method, sparsity=0.75, num_layers=2))
    params = last.params
    for leaf in (
        params["embedding"],
        params["softmax"]["kernel"],
        params["layer_0"]["bias"],
        params["layer_1"]["bias"],
    ):
        assert jnp.count_nonzero(leaf) == leaf.size


@pytest.mark.parametrize("method", ["magnitude", "static-block"])
@pytest.mark.parametrize("cell", ["lstm", "qrnn"])
def test_density_is_measured_from_the_parameters(method, cell):
    config = configuration(method=method, cell=cell, sparsity=0.75, num_layers=2)
    *_, last = states(config)
    lm, tokens = language_model(config.model), jnp.zeros((2, 3), jnp.int32)
    density = lambda params: float(lm.apply(params, tokens, lm.init_carry(2))[2].density)  # noqa: E731
    assert density(last.params) == 0.25 == cost(config.model).blocks / (cost(config.model).dense - H * V)
    layer = last.params["layer_1"]
    dense_layer = {**layer, "input": {"kernel": jnp.ones_like(layer["input"]["kernel"])}}
    kernels = 4 if cell == "lstm" else 2
    assert density({**last.params, "layer_1": dense_layer}) == pytest.approx(0.25 + 0.75 / kernels)
    weights = jnp.ones(tokens.shape)
    assert float(eval_step(lm, last.params, lm.init_carry(2), tokens, tokens, weights, None)[2]) == 0.25


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_agp_against_numpy(unit, momentum):
    """Every weight after every step: descent with momentum, gradients of pruned weights left out."""
    config = configuration(method="magnitude", magnitude_unit=unit)
    transformation = magnitude_pruning(optax.sgd(0.1, momentum=momentum), config)
    rng, size = np.random.default_rng(1), UNITS[unit]
    w = rng.normal(size=(8, 12)).astype(np.float32)
    params = {"layer_0": {"input": {"kernel": jnp.asarray(w)}}}
    state = transformation.init(params)
    update = jax.jit(transformation.update)
    kept, velocity = np.ones((8 // size, 12 // size), bool), np.zeros_like(w)
    for step in range(1, STEPS + 1):
        gradient = rng.normal(size=w.shape).astype(np.float32)
        updates, state = update({"layer_0": {"input": {"kernel": gradient}}}, state, params)
        params = optax.apply_updates(params, updates)

        whole = np.kron(kept, np.ones((size, size)))
        velocity = (momentum or 0.0) * velocity + gradient * whole
        w = (w - 0.1 * velocity) * whole
        if step in (2, 5, 8):
            norms = np.where(kept, np.sqrt((block_view(w, size) ** 2).sum((1, 3))), -1)
            count = num_kept_blocks(kept.size, sparsity_at(config, step))
            kept = np.zeros_like(kept)
            kept.flat[np.argsort(-norms, axis=None)[:count]] = True
            w = w * np.kron(kept, np.ones((size, size)))
        np.testing.assert_allclose(params["layer_0"]["input"]["kernel"], w, atol=1e-5)
    assert (w == 0).mean() == pytest.approx(0.7, abs=0.05)


def test_equal_weights_are_pruned_to_the_exact_number():
    config = configuration(method="magnitude", sparsity=0.5)
    transformation = magnitude_pruning(optax.sgd(0.0), config)
    signs = np.where(np.arange(35).reshape(5, 7) % 2, 1.0, -1.0).astype(np.float32)
    signs[0, :3] = 0.0
    params = {"layer_0": {"hidden": {"kernel": jnp.asarray(signs)}}}
    state, update = transformation.init(params), jax.jit(transformation.update)
    for step in range(1, STEPS + 1):
        updates, state = update(params, state, params)
        params = optax.apply_updates(params, updates)
        assert state.masks["layer_0/hidden"].sum() == num_kept_blocks(35, sparsity_at(config, step))
    assert jnp.count_nonzero(params["layer_0"]["hidden"]["kernel"]) == 18


@pytest.mark.parametrize("method", ["magnitude", "static-block"])
def test_gradients_of_held_weights_are_not_clipped_with_the_others(method):
    config = configuration(method=method, optimizer="sgd", sparsity=0.75)
    *_, last = states(config)
    optimizer = hold_fixed(make_optimizer(config.optim, STEPS), config)
    zeros = jax.tree.map(jnp.zeros_like, last.params)
    kernel = last.params["layer_0"]["input"]["kernel"]
    live = jnp.where(kernel != 0, 0.001, 0.0)
    layer = {**zeros["layer_0"], "input": {"kernel": jnp.where(kernel != 0, live, 1e3)}}
    updates, _ = optimizer.transformation.update({**zeros, "layer_0": layer}, last.opt_state, last.params)
    np.testing.assert_allclose(updates["layer_0"]["input"]["kernel"], -2.0 * live, rtol=1e-6)


@pytest.mark.parametrize(("cell", "optimizer"), [("lstm", "adamw"), ("qrnn", "sgd")])
def test_static_blocks_stay_as_they_are(cell, optimizer):
    config = configuration(method="static-block", cell=cell, sparsity=0.75, optimizer=optimizer)
    for state in states(config, scale=0.3):
        for kernel in recurrent_kernels(state.params).values():
            mask = np.kron(static_mask(config.model, kernel.shape), np.ones((4, 4), bool))
            np.testing.assert_array_equal(np.asarray(kernel) != 0, mask)


@pytest.mark.parametrize("cell", ["lstm", "qrnn"])
def test_a_static_block_model_is_narrower_models_side_by_side(cell):
    """With two groups, the second half of the embedding never reaches the first half of the features, in any layer."""
    config = configuration(method="static-block", cell=cell, sparsity=0.5, num_layers=2).model
    lm = language_model(config)
    params = lm.init(jax.random.key(0))
    tokens = jnp.arange(10).reshape(2, 5)
    carries = []
    for change in (0.0, 1.0):
        embedding = params["embedding"].at[:, H // 2 :].add(change)
        carries.append(lm.apply({**params, "embedding": embedding}, tokens, lm.init_carry(2))[1])
    for one, other in zip(carries[0], carries[1], strict=True):
        np.testing.assert_array_equal(one.c[:, : H // 2], other.c[:, : H // 2])
        assert (one.c[:, H // 2 :] != other.c[:, H // 2 :]).all()
    # The initial weights are drawn as for a model of half the width.
    for kernel in recurrent_kernels(params).values():
        bound = (H / 2) ** -0.5
        assert 0.95 * bound < np.abs(kernel).max() <= bound * (1 + 1e-6)


def test_other_models_get_their_optimiser_back():
    for model in ({"method": "dense"}, {"gate_source": "bias"}, {}):
        config = configuration(**model)
        optimizer = make_optimizer(config.optim, STEPS)
        assert hold_fixed(optimizer, config) is optimizer


class Killed(Exception):
    """Stands for SIGKILL."""


@pytest.mark.parametrize(
    ("method", "unit"),
    [
        ("magnitude", "weight"),
        pytest.param("magnitude", "block", marks=pytest.mark.slow),
        pytest.param("static-block", "block", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_the_same(method, unit, tmp_path, monkeypatch):
    corpus = tiny_run.write_corpus(tmp_path / "text")
    schedule = {"sparsity_begin": 2 / 16, "sparsity_end": 11 / 16, "sparsity_every": 3}
    model = {"method": method, "magnitude_unit": unit, "block_size": 8, "sparsity": 0.75}
    # An average of the parameters, if there is one, remembers the values of pruned weights.
    average = {"ema_decay": 0.9} if unit == "block" else {}
    config = tiny_run.config(corpus, weight_decay=0.1, **average, **model, **schedule)
    whole = train(config, tmp_path / "whole", progress=False)

    step, calls = loop.train_step, []

    def mortal(*args):
        calls.append(1)
        if len(calls) in (6, 12):
            raise Killed
        return step(*args)

    monkeypatch.setattr(loop, "train_step", mortal)
    for _ in range(2):
        with pytest.raises(Killed):
            train(config, tmp_path / "resumed", progress=False)
    resumed = train(config, tmp_path / "resumed", progress=False)
    # Steps 5 and 9 were done twice, but 5 only if step 4 was not the best: the state is saved with each best.
    assert len(calls) == 16 + 2 + (1 if method == "static-block" else 2)
    for name in ("parameters_sha256", "best_step", "validation_perplexity", "realised_density", "relative_cost"):
        assert resumed[name] == whole[name]

    lines = read_metrics(tmp_path / "resumed" / "metrics.jsonl")
    for line in lines:
        done = line["step"] - (line["split"] == "train")
        assert line["sparsity"] == sparsity_at(config, done)
        blocks = 4 * 16 if unit == "block" else 32 * 128
        assert line["density"] == pytest.approx(num_kept_blocks(blocks, line["sparsity"]) / blocks, abs=1e-6)
    assert {line["sparsity"] for line in lines if line["step"] > 11} == {0.75}
    assert min(best_checkpoints(tmp_path / "resumed", read_only=True).steps) >= (11 if method == "magnitude" else 1)
    made = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=len(tiny_run.WORDS) + 1))
    for which in ("best", "last"):
        params, _ = load_params(made, tmp_path / "resumed", which)
        for kernel in recurrent_kernels(params).values():
            assert jnp.count_nonzero(kernel) == kernel.size // 4
    assert resumed["realised_density"] == 0.25
    assert resumed["relative_cost"] == cost(made.model).relative
