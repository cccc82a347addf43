"""Optimisers as optax chains, the plateau rule that halves the learning rate, and the schedule of the sparsity."""

import functools
import random
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bwds.array_types import Array, Float32, Int32
from bwds.config import Config, OptimConfig
from bwds.linear import Params
from bwds.sparsity import cubic_sparsity


def learning_rate_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate of a step, counted from 0, before the plateau's factor.

    sgd: constant, or with ``transition_steps`` cut by ``decay_rate`` every so many steps, as Zaremba et al. 2014 (arXiv
    1409.2329) halve it every epoch after the fourth. adamw: linear warm-up over ``warmup_steps``, at most half of all
    ``steps``, then a cosine that reaches 0 after the last one. The warm-up does not begin at 0, so the first step is
    not wasted.

    Args:
        config: the optimiser's options.
        steps: all steps of the training run.
    """
    if config.name == "sgd":
        if config.transition_steps is None:
            return optax.constant_schedule(config.learning_rate)
        return optax.exponential_decay(
            config.learning_rate,
            config.transition_steps,
            config.decay_rate,
            transition_begin=config.transition_begin,
            staircase=True,
        )
    warmup = min(config.warmup_steps, steps // 2)
    return optax.warmup_cosine_decay_schedule(
        config.learning_rate / (warmup + 1), config.learning_rate, warmup_steps=warmup, decay_steps=max(steps, 1)
    )


class Optimizer(NamedTuple):
    """An optimiser, its learning rate before the plateau's factor, and the options that it was made from."""

    transformation: optax.GradientTransformationExtraArgs
    learning_rate: optax.Schedule
    options: OptimConfig


@functools.cache
def make_optimizer(config: OptimConfig, steps: int) -> Optimizer:
    """Clipping of the global norm, then sgd (the paper's: no momentum) or adamw.

    Weight decay, if any, acts on matrices only: biases are left alone. The update takes the plateau's factor as the
    keyword ``scale``. Equal options give one and the same optimiser, so that no step compiles twice.

    Args:
        config: the optimiser's options.
        steps: all steps of the training run, for the cosine.
    """
    schedule = learning_rate_schedule(config, steps)
    clip = optax.clip_by_global_norm(config.clip_norm)

    def matrices(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    if config.name == "adamw":
        rule = optax.adamw(schedule, weight_decay=config.weight_decay, mask=matrices)
    elif config.weight_decay:
        rule = optax.chain(optax.add_decayed_weights(config.weight_decay, mask=matrices), optax.sgd(schedule))
    else:
        rule = optax.sgd(schedule)
    return Optimizer(optax.chain(clip, rule, _scaled()), schedule, config)


def _scaled() -> optax.GradientTransformationExtraArgs:
    def update(updates: optax.Updates, state: Any, params: Any = None, *, scale: Any = 1.0, **_: Any) -> Any:
        return jax.tree.map(lambda update: scale * update, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def update_average(average: Params, params: Params, *, step: Int32[Array, ""], decay: float) -> Params:
    """The moving average of the parameters after one more step: d * average + (1 - d) * params.

    d = min(decay, (1 + step) / (10 + step)), so that a young average spans about the last tenth of all steps and
    forgets where training began.

    Args:
        average: the average before; at the start the initial parameters.
        params: the parameters after the step.
        step: steps done before it.
        decay: d in the long run; the average then spans about 1 / (1 - decay) steps.
    """
    step_size = jnp.maximum(1.0 - decay, 9.0 / (10.0 + step))
    updated: Any = optax.incremental_update(params, average, step_size)
    return updated


def averaged_params(average: Params, params: Params) -> Params:
    """The parameters to evaluate: the average, but zero wherever the latest parameter is exactly zero.

    Such a weight was pruned. Its average still decays from its earlier value, and would bring it back.
    """
    return jax.tree.map(lambda a, p: jnp.where(p == 0.0, 0.0, a), average, params)


class Plateau(NamedTuple):
    """The results of evaluations so far; part of the training state.

    Attributes:
        scale: factor on the learning rate, float32.
        best_loss: lowest validation loss in nats per token, float32; infinite before the first evaluation.
        best_step: step of that evaluation, int32. Before the first evaluation it is 0; in a run that is evaluated at
            step 0 it is -1.
        evaluated_step: step of the latest evaluation, int32; before the first one as ``best_step``.
    """

    scale: Float32[Array, ""]
    best_loss: Float32[Array, ""]
    best_step: Int32[Array, ""]
    evaluated_step: Int32[Array, ""]


def init_plateau(*, started: bool = False) -> Plateau:
    """The state before any evaluation; ``started``: the initial parameters are evaluated too, at step 0."""
    before = jnp.int32(-1 if started else 0)
    return Plateau(jnp.float32(1.0), jnp.float32(jnp.inf), before, before)


def after_evaluation(plateau: Plateau, loss: float, *, step: int, factor: float, counts: bool = True) -> Plateau:
    """The plateau after an evaluation: a new best loss is recorded, any other multiplies the scale by ``factor``.

    This is the rule of the paper's code with factor 1/2: the learning rate is halved at every evaluation that does not
    improve on the best one.

    Args:
        plateau: the state before.
        loss: validation loss in nats per token.
        step: steps done at this evaluation.
        factor: multiplies the scale if the loss is no improvement; 1 leaves it alone.
        counts: whether the loss can be compared with others; False: only the step is recorded.
    """
    plateau = plateau._replace(evaluated_step=jnp.int32(step))
    if not counts:
        return plateau
    loss32 = jnp.float32(loss)
    if loss32 < plateau.best_loss:
        return plateau._replace(best_loss=loss32, best_step=jnp.int32(step))
    # In NumPy, because JAX would compile a program for this product in the middle of a run.
    return plateau._replace(scale=jax.device_put(np.float32(plateau.scale) * np.float32(factor)))


def sparsity_at(config: Config, step: int) -> float:
    """The model's sparsity after ``step`` steps: constant, or by ``cubic_sparsity``. Dense: 0."""
    final = 0.0 if config.model.method == "dense" else config.model.sparsity
    if not config.rising_sparsity:
        return final
    return cubic_sparsity(step, config.train.sparsity_steps, initial=config.train.sparsity_initial, final=final)


def step_sparsity(config: Config, step: int) -> float:
    """The sparsity of the step after ``step`` steps: ``sparsity_at``, or a uniform draw from ``sparsity_range``.

    A draw depends on the seed and the step alone, so it is the same in all processes and in a resumed run.
    """
    if config.train.sparsity_range is None:
        return sparsity_at(config, step)
    least, largest = config.train.sparsity_range
    return random.Random(f"sparsity of step {step}, seed {config.train.seed}").uniform(least, largest)


def traced_sparsity(config: Config, sparsity: float) -> np.float32 | None:
    """The sparsity as a traced argument, so that one program serves all sparsities; None: the model's own."""
    changes = config.rising_sparsity or config.train.sparsity_range is not None
    return np.float32(sparsity) if changes and config.model.method == "dynamic" else None
