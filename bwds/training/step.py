"""The training state and the one jitted step that changes it."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bwds.array_types import Array, Bool, Float, Float32, Int32, Key
from bwds.collectives import pmean_scatter
from bwds.linear import Params
from bwds.losses import cross_entropy
from bwds.model import LanguageModel
from bwds.training.optim import Optimizer, Plateau, averaged_params, init_plateau, update_average
from bwds.training.sharding import P, Placement, over_devices
from pallas_kernels.mesh_axes import like


class NonFiniteError(Exception):
    """Training met a loss, a gradient or parameters that are not finite. The message says where and what to do."""


class TrainState(NamedTuple):
    """All that the next step depends on.

    Attributes:
        params: parameters, float32.
        opt_state: state of the optimiser.
        carry: state of the recurrent layers, one row a text stream.
        key: key of dropout; a step uses ``fold_in(key, step)``.
        step: steps done, int32.
        plateau: results of evaluations, and the factor on the learning rate.
        average: moving average of the parameters; None without ``ema_decay``.
    """

    params: Params
    opt_state: Any
    carry: Any
    key: Key[Array, ""]
    step: Int32[Array, ""]
    plateau: Plateau
    average: Params | None


class StepMetrics(NamedTuple):
    """The figures of one step.

    Attributes:
        loss: mean cross-entropy of its batch in nats per token, without penalties, float32.
        gradient_norm: global norm of the gradients of the whole objective before clipping, float32.
        density: realised density, float32.
        learning_rate: with the plateau's factor, float32.
    """

    loss: Float32[Array, ""]
    gradient_norm: Float32[Array, ""]
    density: Float32[Array, ""]
    learning_rate: Float32[Array, ""]


@partial(jax.jit, static_argnames=("lm", "optimizer", "batch_size", "placement"))
def init_state(
    lm: LanguageModel,
    optimizer: Optimizer,
    key: Key[Array, ""],
    *,
    batch_size: int,
    placement: Placement | None = None,
    params: Params | None = None,
) -> TrainState:
    """The state before the first step. ``key`` gives the key of dropout, and the parameters if ``params`` is None."""
    params_key, dropout_key = jax.random.split(key)
    plateau = init_plateau(started=params is not None)
    params = lm.init(params_key) if params is None else params
    carry = lm.init_carry(batch_size)
    opt_state = optimizer.transformation.init(params)
    average = params if optimizer.options.ema_decay else None
    state = TrainState(params, opt_state, carry, dropout_key, jnp.int32(0), plateau, average)
    return state if placement is None else placement.constrain(state)


@partial(jax.jit, static_argnames=("lm", "optimizer", "placement"), donate_argnames="state")
def train_step(
    lm: LanguageModel,
    optimizer: Optimizer,
    state: TrainState,
    inputs: Int32[Any, "B T"],
    targets: Int32[Any, "B T"],
    new_epoch: Bool[Any, ""],
    sparsity: Float[Any, ""] | None,
    placement: Placement | None = None,
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
        placement: of the state and the batch; None: all on one device.
    """

    options = optimizer.options

    def differentiate(params, carry, key, inputs, targets, new_epoch, sparsity):
        """Runs on each device with its rows of the batch. All have as many rows, so the mean of means is the mean."""

        def objective(params: Params) -> tuple[Array, tuple[Array, Any, Array]]:
            before = jax.tree.map(lambda c: jnp.where(new_epoch, jnp.zeros_like(c), c), carry)
            logits, after, info = lm.apply(params, inputs, before, dropout_key=key, sparsity=sparsity)
            loss = cross_entropy(logits, targets).mean()
            total = loss
            if options.activation_penalty:
                total += options.activation_penalty * info.output_square
            if options.temporal_activation_penalty:
                total += options.temporal_activation_penalty * info.output_change
            return total, (loss, after, info.density)

        # Parameters get the type of values that differ between devices. The gradients then are those of these rows
        # alone, and are added up once, below.
        params = like(params, inputs)
        (_, (loss, carry, density)), gradients = jax.value_and_grad(objective, has_aux=True)(params)
        return *pmean_scatter((loss, density, gradients), (P(), P(), shares)), carry

    # Each device gets its parameters whole along the axis of the rows; gradients are sharded as the optimiser's state.
    if placement is None:
        params_spec = shares = jax.tree.map(lambda _: P(), state.params)
        rows = P()
    else:
        params_spec, shares, rows = placement.specs(state.params), placement.specs(state).params, placement.rows
    gradients_of = over_devices(
        placement,
        differentiate,
        in_specs=(params_spec, rows, P(), rows, rows, P(), P()),
        out_specs=(P(), P(), shares, rows),
    )
    key = jax.random.fold_in(state.key, state.step)
    loss, density, gradients, carry = gradients_of(state.params, state.carry, key, inputs, targets, new_epoch, sparsity)
    updates, opt_state = optimizer.transformation.update(
        gradients, state.opt_state, state.params, scale=state.plateau.scale
    )
    params: Any = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        average = update_average(average, params, step=state.step, decay=options.ema_decay)
    learning_rate = jnp.float32(optimizer.learning_rate(state.step)) * state.plateau.scale
    metrics = StepMetrics(loss, optax.tree.norm(gradients), density, learning_rate)
    state = TrainState(params, opt_state, carry, state.key, state.step + 1, state.plateau, average)
    return (state if placement is None else placement.constrain(state)), metrics


@partial(jax.jit, static_argnames="placement")
def evaluated_params(state: TrainState, placement: Placement | None = None) -> Params:
    """The parameters to evaluate, keep and decode with: the latest, or their moving average if there is one."""
    params = state.params if state.average is None else averaged_params(state.average, state.params)
    return params if placement is None else placement.constrain(params)


@jax.jit
def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether all floating-point numbers in the tree are finite."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()
