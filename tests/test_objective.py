"""One training step of a regularised model: its penalties, and the moving average of its parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny_run

from bwds.model import language_model
from bwds.training.optim import make_optimizer
from bwds.training.step import evaluated_params, init_state, train_step


@pytest.fixture(scope="module")
def regularised(corpus):
    """``(config, lm, optimizer, state, tokens)``; sgd that only subtracts the gradient, and an average."""
    config = tiny_run.config(
        corpus,
        method="dense",
        name="sgd",
        learning_rate=1.0,
        clip_norm=1e9,
        activation_penalty=0.7,
        temporal_activation_penalty=0.4,
        ema_decay=0.6,
    )
    model = dataclasses.replace(config.model, vocab_size=len(tiny_run.WORDS) + 1)
    lm, optimizer = language_model(model), make_optimizer(config.optim, config.train.steps)
    tokens = np.random.default_rng(0).integers(0, 31, (4, 9)).astype(np.int32)
    return lm, optimizer, init_state(lm, optimizer, jax.random.key(0), batch_size=4), tokens


def step_of(lm, optimizer, state, tokens):
    copy = jax.tree.map(jnp.copy, state)
    return train_step(lm, optimizer, copy, tokens[:, :-1], tokens[:, 1:], np.bool_(False), None)


def test_penalties_are_in_the_gradient_and_not_in_the_loss(regularised):
    lm, optimizer, state, tokens = regularised

    def terms(params):
        inputs, key = jnp.asarray(tokens[:, :-1]), jax.random.fold_in(state.key, 0)
        logits, _, info = lm.apply(params, inputs, state.carry, dropout_key=key)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)
        return -chosen.mean(), info.output_square, info.output_change

    after, metrics = step_of(lm, optimizer, state, tokens)
    loss, square, change = jax.jit(terms)(state.params)
    assert float(metrics.loss) == pytest.approx(float(loss), rel=1e-6)
    assert min(float(square), float(change)) > 1e-4
    parts = jax.jit(jax.jacrev(terms))(state.params)
    for before, now, *gradients in zip(*map(jax.tree.leaves, (state.params, after.params, *parts)), strict=True):
        of_loss, of_square, of_change = (oracle.f64(g) for g in gradients)
        wanted = of_loss + 0.7 * of_square + 0.4 * of_change
        np.testing.assert_allclose(before - now, wanted, atol=1e-5 * max(np.abs(wanted).max(), 1e-2))
    assert np.abs(parts[1]["layer_0"]["bias"]).max() > 1e-5


def test_the_average_follows_the_parameters_and_is_what_counts(regularised):
    lm, optimizer, state, tokens = regularised
    wanted = oracle.f64(state.params)
    for step in range(4):
        state, _ = step_of(lm, optimizer, state, tokens)
        d = min(0.6, (1 + step) / (10 + step))
        wanted = jax.tree.map(lambda a, p, d=d: d * a + (1 - d) * oracle.f64(p), wanted, state.params)
    oracle.assert_close(state.average, wanted, tolerance=1e-5)
    pruned = state.params["layer_0"]["hidden"]["kernel"].at[3:20, 5:50].set(0.0)
    state.params["layer_0"]["hidden"]["kernel"] = pruned
    found = evaluated_params(state)
    wanted["layer_0"]["hidden"]["kernel"][3:20, 5:50] = 0.0
    oracle.assert_close(found, wanted, tolerance=1e-5)
    assert not np.any(np.asarray(found["layer_0"]["hidden"]["kernel"])[3:20, 5:50])
