"""Learning rates, clipping, the plateau rule and the schedule of the sparsity, each against a calculation by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bwds.config import Config, ModelConfig, OptimConfig, TrainConfig
from bwds.presets import PRESETS
from bwds.sparsity import schedule_steps
from bwds.training.optim import (
    after_evaluation,
    averaged_params,
    init_plateau,
    learning_rate_schedule,
    make_optimizer,
    sparsity_at,
    step_sparsity,
    traced_sparsity,
    update_average,
)


def test_adamw_warms_up_and_decays_by_a_cosine():
    schedule = learning_rate_schedule(OptimConfig(name="adamw", learning_rate=0.4, warmup_steps=3), 13)
    warmup = [0.1 + (0.4 - 0.1) * i / 3 for i in range(3)]
    cosine = [0.4 * 0.5 * (1 + math.cos(math.pi * i / 10)) for i in range(11)]
    np.testing.assert_allclose([schedule(i) for i in range(14)], warmup + cosine, atol=1e-7)


def test_sgd_at_the_rates_of_zaremba_et_al():
    # TensorFlow's tutorial: epoch i, counted from 0, has 0.5 ** max(i + 1 - 4, 0) of the rate.
    config = PRESETS["ptb-lstm-zaremba"]
    schedule = learning_rate_schedule(config.optim, config.train.steps)
    epoch = config.train.eval_every
    assert (config.train.steps, epoch) == (13 * epoch, (929_589 - 1) // 20 // 20)
    for i in range(13):
        rates = [float(schedule(i * epoch)), float(schedule((i + 1) * epoch - 1))]
        assert rates == [20.0 * 0.5 ** max(i + 1 - 4, 0)] * 2


def test_cuts_of_the_rate_have_the_meaning_of_optax():
    config = OptimConfig(name="sgd", learning_rate=3.0, transition_steps=4, transition_begin=2, decay_rate=0.1)
    expected = [3.0] * 6 + [0.3] * 4 + [0.03]
    np.testing.assert_allclose([learning_rate_schedule(config, 20)(i) for i in range(11)], expected, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_a_run_shorter_than_the_warm_up_still_learns_in_every_step(steps):
    schedule = learning_rate_schedule(OptimConfig(name="adamw", learning_rate=0.5, warmup_steps=100), steps)
    rates = [float(schedule(i)) for i in range(steps)]
    assert all(0 < rate <= 0.5 for rate in rates)
    if steps > 1:
        assert max(rates) == 0.5


@pytest.mark.parametrize(("norm", "expected"), [(10.0, 0.25), (0.1, 0.1)])
def test_sgd_subtracts_the_clipped_gradient(norm, expected):
    optimizer = make_optimizer(OptimConfig(name="sgd", learning_rate=20.0, clip_norm=0.25), 5)
    direction = {"a": jnp.array([3.0, 0.0]) / 5, "b": jnp.array([[4.0]]) / 5}
    gradients = jax.tree.map(lambda d: norm * d, direction)
    updates, _ = optimizer.transformation.update(gradients, optimizer.transformation.init(gradients), gradients)
    for name, update in updates.items():
        np.testing.assert_allclose(update, -20.0 * expected * direction[name], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_spares_biases(name):
    config = OptimConfig(name=name, learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    transformation = make_optimizer(config, 5).transformation
    params = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), 2.0)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transformation.update(zeros, transformation.init(params), params)
    np.testing.assert_allclose(updates["kernel"], np.full((2, 2), -0.1 * 0.5 * 2.0), rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


def test_sgd_decays_beside_the_clipped_gradient():
    config = OptimConfig(name="sgd", learning_rate=2.0, clip_norm=0.25, weight_decay=0.3)
    transformation = make_optimizer(config, 5).transformation
    params, gradients = jnp.array([[1.0, -2.0]]), jnp.array([[3.0, 4.0]])
    updates, _ = transformation.update(gradients, transformation.init(params), params)
    clipped = 0.25 * np.array([[0.6, 0.8]])
    np.testing.assert_allclose(updates, -2.0 * (clipped + 0.3 * np.array([[1.0, -2.0]])), rtol=1e-6)


@given(
    st.lists(st.floats(-3.0, 3.0, width=32), min_size=2, max_size=40),
    st.sampled_from([0.5, 0.9, 0.999]),
)
def test_the_average_is_its_recurrence(values, decay):
    first, *later = values
    average, wanted = {"a": {"b": jnp.full((2, 1), first)}}, np.float64(first)
    for step, value in enumerate(later):
        average = update_average(average, {"a": {"b": jnp.full((2, 1), value)}}, step=jnp.int32(step), decay=decay)
        d = min(decay, (1 + step) / (10 + step))
        wanted = d * wanted + (1 - d) * value
    np.testing.assert_allclose(average["a"]["b"], np.full((2, 1), wanted), atol=1e-5)


def test_a_pruned_weight_is_zero_in_what_is_evaluated():
    params = {"kernel": jnp.array([[0.0, 2.0], [-0.0, 1e-30]]), "bias": jnp.array([3.0])}
    average = {"kernel": jnp.array([[0.4, 1.5], [-0.2, 0.3]]), "bias": jnp.array([2.5])}
    found = averaged_params(average, params)
    np.testing.assert_array_equal(found["kernel"], np.array([[0.0, 1.5], [0.0, 0.3]], np.float32))
    np.testing.assert_array_equal(found["bias"], average["bias"])


@given(st.lists(st.floats(0.5, 9.0, width=32), min_size=1, max_size=12), st.sampled_from([0.25, 0.5, 1.0]))
def test_plateau_is_the_hand_simulation(losses, factor):
    plateau, scale, best, best_step = init_plateau(), 1.0, math.inf, 0
    for step, loss in enumerate(losses, start=1):
        plateau = after_evaluation(plateau, loss, step=step, factor=factor)
        if loss < best:
            best, best_step = loss, step
        else:
            scale *= factor
        assert [float(plateau.scale), float(plateau.best_loss)] == [scale, best]
        assert [int(plateau.best_step), int(plateau.evaluated_step)] == [best_step, step]


def test_an_evaluation_that_does_not_count_is_noted_only():
    before = init_plateau()
    after = after_evaluation(before, 1.0, step=7, factor=0.5, counts=False)
    assert int(after.evaluated_step) == 7
    assert after._replace(evaluated_step=before.evaluated_step) == before


def test_the_state_of_a_plateau_keeps_its_types():
    """Otherwise the training step would be compiled again after an evaluation."""
    before = init_plateau()
    for after in (
        after_evaluation(before, 1.0, step=1, factor=0.5),
        after_evaluation(before._replace(best_loss=jnp.float32(0.5)), 1.0, step=1, factor=0.5),
    ):
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, before)


def _scheduled(**model):
    train = TrainConfig(steps=50, sparsity_schedule="cubic", sparsity_begin=0.2, sparsity_end=0.7, sparsity_every=4)
    return Config(model=ModelConfig(sparsity=0.8, **model), train=train)


def published(t, *, s_i, s_f, t_0, n, dt):
    """Equation 1 of Zhu and Gupta (arXiv 1710.01878), for the t that it names."""
    return s_f + (s_i - s_f) * (1 - (t - t_0) / (n * dt)) ** 3


@pytest.mark.parametrize("method", ["dynamic", "magnitude"])
def test_cubic_schedule_is_the_published_formula_at_every_step(method):
    config = _scheduled(method=method)
    # Begins at 10; 35 - 10 is not a whole number of intervals of 4, so the last change is at 34.
    changes = range(10, 35, 4)
    expected = 0.0
    for step in range(51):
        if step in changes:
            expected = published(step, s_i=0.05, s_f=0.8, t_0=10, n=6, dt=4)
        assert sparsity_at(config, step) == pytest.approx(expected, abs=1e-15)
    assert [sparsity_at(config, step) for step in (0, 9, 34, 50)] == [0.0, 0.0, 0.8, 0.8]
    assert sparsity_at(config, 33) < 0.8


@given(
    st.integers(3, 5000),
    st.floats(0, 0.4),
    st.floats(0.5, 1),
    st.integers(1, 2000),
)
def test_the_schedule_fits_the_run(steps, begin, end, every):
    changes = schedule_steps(steps, begin=begin, end=end, every=every)
    assert 1 <= changes[0] == max(1, round(begin * steps))
    assert round(end * steps) - every < changes[-1] <= round(end * steps) <= steps
    assert len(changes) >= 2
    assert changes.step == min(every, round(end * steps) - changes[0])


def test_other_schedules_are_constant():
    assert sparsity_at(_scheduled(method="dense"), 40) == 0.0
    constant = dataclasses.replace(_scheduled(), train=TrainConfig())
    assert {sparsity_at(constant, step) for step in (0, 5, 700)} == {0.8}


def test_a_step_draws_its_sparsity_from_the_range():
    """Uniformly, by the seed and the step alone; evaluations stay at the model's."""
    config = Config(model=ModelConfig(sparsity=0.5), train=TrainConfig(sparsity_range=(0.3, 0.9)))
    drawn = np.array([step_sparsity(config, step) for step in range(4000)])
    assert drawn.min() >= 0.3
    assert drawn.max() < 0.9
    counts, _ = np.histogram(drawn, 6, (0.3, 0.9))
    np.testing.assert_allclose(counts / 4000, 1 / 6, atol=5 * (5 / 36 / 4000) ** 0.5)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / 4000**0.5
    again = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=7))
    assert [step_sparsity(again, step) for step in (5, 3)] == [drawn[5], drawn[3]]
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=1))
    assert step_sparsity(other, 3) != drawn[3]
    assert {sparsity_at(config, step) for step in (0, 5, 700)} == {0.5}
    assert traced_sparsity(config, 0.25) == np.float32(0.25)
    assert traced_sparsity(Config(), 0.25) is None


def test_without_a_range_a_step_has_the_sparsity_of_the_schedule():
    config = _scheduled()
    assert [step_sparsity(config, step) for step in (0, 20, 50)] == [sparsity_at(config, step) for step in (0, 20, 50)]
