"""The training state and the one jitted step that changes it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bwds.array_types import Array, Bool, Float, Float32, Int32, Key
from bwds.linear import Params
from bwds.model import LanguageModel
from bwds.optim import Optimizer, Plateau, init_plateau


class TrainState(NamedTuple):
    """All that the next step depends on.

    Attributes:
        params: parameters, float32.
        opt_state: state of the optimiser.
        carry: state of the recurrent layers, one row a text stream.
        key: key of dropout; a step uses ``fold_in(key, step)``.
        step: steps done, int32.
        plateau: what evaluations have shown, and the factor on the learning rate.
    """

    params: Params
    opt_state: Any
    carry: Any
    key: Key[Array, ""]
    step: Int32[Array, ""]
    plateau: Plateau


class StepMetrics(NamedTuple):
    """What one step shows.

    Attributes:
        loss: mean loss of its batch in nats per token, float32.
        gradient_norm: global norm of the gradients before clipping, float32.
        density: realised density, float32.
        learning_rate: with the plateau's factor, float32.
    """

    loss: Float32[Array, ""]
    gradient_norm: Float32[Array, ""]
    density: Float32[Array, ""]
    learning_rate: Float32[Array, ""]


@partial(jax.jit, static_argnames=("lm", "optimizer", "batch_size"))
def init_state(lm: LanguageModel, optimizer: Optimizer, key: Key[Array, ""], *, batch_size: int) -> TrainState:
    """The state before the first step: initial parameters and the key of dropout come from ``key``."""
    params_key, dropout_key = jax.random.split(key)
    params = lm.init(params_key)
    carry = lm.init_carry(batch_size)
    return TrainState(params, optimizer.transformation.init(params), carry, dropout_key, jnp.int32(0), init_plateau())


@partial(jax.jit, static_argnames=("lm", "optimizer"), donate_argnames="state")
def train_step(
    lm: LanguageModel,
    optimizer: Optimizer,
    state: TrainState,
    inputs: Int32[Any, "B T"],
    targets: Int32[Any, "B T"],
    new_epoch: Bool[Any, ""],
    sparsity: Float[Any, ""] | None,
) -> tuple[TrainState, StepMetrics]:
    """One step of truncated backpropagation; the state is donated.

    Args:
        lm: the model.
        optimizer: the optimiser, without the plateau's factor, which is in the state.
        state: the state before.
        inputs: tokens [B, T].
        targets: the token after each input, [B, T].
        new_epoch: the carried state starts from zeros.
        sparsity: a traced scalar for schedules; None: the model's own.
    """

    def loss_of(params: Params) -> tuple[Array, tuple[Any, Array]]:
        carry = jax.tree.map(lambda c: jnp.where(new_epoch, jnp.zeros_like(c), c), state.carry)
        key = jax.random.fold_in(state.key, state.step)
        logits, carry, info = lm.apply(params, inputs, carry, dropout_key=key, sparsity=sparsity)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
        return losses.mean(), (carry, info.density)

    (loss, (carry, density)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.transformation.update(
        gradients, state.opt_state, state.params, scale=state.plateau.scale
    )
    params: Any = optax.apply_updates(state.params, updates)
    learning_rate = jnp.float32(optimizer.learning_rate(state.step)) * state.plateau.scale
    metrics = StepMetrics(loss, optax.tree.norm(gradients), density, learning_rate)
    return TrainState(params, opt_state, carry, state.key, state.step + 1, state.plateau), metrics


@jax.jit
def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether all floating-point numbers in the tree are finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()
