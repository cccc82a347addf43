"""Weights that training holds at exactly zero, as a wrapper around an optax optimiser.

Magnitude pruning is AGP (Zhu and Gupta, arXiv 1710.01878): between two steps the sparsity rises by a cubic schedule,
and at every change the smallest weights of each matrix of the recurrent layers become zero. Embedding, softmax and
biases are left alone. As in the paper, a pruned weight gets no gradient; nor does it count in the norm that is clipped.
Its value is lost: it stays zero, so it is among the smallest at every later change and never comes back.

Masks of static-block models are constant. All masks are in the optimiser's state, and so in every checkpoint.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from bwds.array_types import Array, Bool, Float, Int32
from bwds.config import Config, DataConfig
from bwds.counts import num_kept_blocks
from bwds.linear import Params
from bwds.model import map_kernels, recurrent_kernels, static_mask
from bwds.selection import select_blocks
from bwds.sparsity import where_kept
from bwds.training.optim import Optimizer, sparsity_at

Masks = dict[str, Bool[Array, "R C"]]


class PruningState(NamedTuple):
    """State of an optimiser that holds weights at zero.

    Attributes:
        inner: state of the optimiser itself.
        step: steps done, int32.
        masks: for each matrix, by name, which of its weights or blocks are not held at zero.
    """

    inner: Any
    step: Int32[Array, ""]
    masks: Masks


def hold_fixed(optimizer: Optimizer, config: Config) -> Optimizer:
    """The optimiser, wrapped so that it holds fixed what the method needs: pruned weights, static blocks, frozen gates.

    For other models it is returned as it is. Equal arguments give the same object, for any data and seed.
    """
    return _hold_fixed(optimizer, replace(config, data=DataConfig(), train=replace(config.train, seed=0)))


@functools.cache
def _hold_fixed(optimizer: Optimizer, config: Config) -> Optimizer:
    model, inner = config.model, optimizer.transformation
    if model.method == "magnitude":
        wrapped = magnitude_pruning(inner, config)
    elif model.method == "static-block":

        def constant(kernels: Params) -> Masks:
            return {name: jnp.asarray(static_mask(model, kernel.shape)) for name, kernel in kernels.items()}

        wrapped = hold_at_zero(inner, constant, lambda step, kernels, masks: masks)
    elif model.method == "dynamic" and model.gate_source == "frozen":
        # Its gradient is zero; weight decay would still shrink it.
        wrapped = optax.chain(inner, optax.masked(optax.set_to_zero(), _gates))
    else:
        return optimizer
    return optimizer._replace(transformation=wrapped)


def _gates(tree: Params) -> Params:
    return jax.tree_util.tree_map_with_path(lambda path, _: any(key.key == "gate" for key in path), tree)


def magnitude_pruning(inner: optax.GradientTransformation, config: Config) -> optax.GradientTransformationExtraArgs:
    """AGP around an optimiser. Exactly ``num_kept_blocks(n, sparsity)`` of a matrix's n weights or blocks remain.

    Where magnitudes are equal the first in row-major order stays. Blocks compete by their L2 norm.

    Args:
        inner: the optimiser.
        config: gives the schedule, the unit, and the shape of blocks.
    """
    steps = config.train.sparsity_steps
    bk, bn = config.model.block_shape if config.model.magnitude_unit == "block" else (1, 1)
    sparsities = [sparsity_at(config, step) for step in steps]

    def whole(kernels: Params) -> Masks:
        return {name: jnp.ones((k.shape[0] // bk, k.shape[1] // bn), bool) for name, k in kernels.items()}

    def prune(step: Array, kernels: Params, masks: Masks) -> Masks:
        change = (step - steps.start) // steps.step
        pruned = {}
        for name, mask in masks.items():
            kept = np.array([num_kept_blocks(mask.size, sparsity) for sparsity in sparsities], np.int32)
            # Pruned weights rank below all others, also below weights that happen to be zero, so they stay pruned.
            magnitudes = jnp.where(mask, _magnitudes(kernels[name], mask), -1.0)
            pruned[name] = select_blocks(magnitudes, num_kept=jnp.asarray(kept)[change])
        return pruned

    def next_masks(step: Array, kernels: Params, masks: Masks) -> Masks:
        due = (step >= steps.start) & (step <= steps[-1]) & ((step - steps.start) % steps.step == 0)
        return lax.cond(due, prune, lambda step, kernels, masks: masks, step, kernels, masks)

    return hold_at_zero(inner, whole, next_masks)


def _magnitudes(kernel: Float[Array, "K N"], mask: Bool[Array, "R C"]) -> Float[Array, "R C"]:
    if kernel.shape == mask.shape:
        return jnp.abs(kernel)
    r, c = mask.shape
    blocks = kernel.reshape(r, kernel.shape[0] // r, c, kernel.shape[1] // c)
    return jnp.sqrt(jnp.square(blocks).sum((1, 3)))


def hold_at_zero(
    inner: optax.GradientTransformation,
    first_masks: Callable[[Params], Masks],
    next_masks: Callable[[Array, Params, Masks], Masks],
) -> optax.GradientTransformationExtraArgs:
    """An optimiser under which weights outside of masks are exactly zero after every step.

    It must be the last of a chain, because a later transformation would change its updates.

    Args:
        inner: the optimiser. It sees no gradient of weights outside of the masks.
        first_masks: masks [R, C] of the recurrent layers' matrices [K, N], by name; each entry is for a block.
        next_masks: from the steps done, the matrices after the step and the masks before it, those that hold from now.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Any) -> PruningState:
        return PruningState(inner.init(params), jnp.int32(0), first_masks(recurrent_kernels(params)))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, PruningState]:
        def masked(name: str, kernel: Array) -> Array:
            return where_kept(state.masks[name], kernel)

        found: Any = inner.update(map_kernels(masked, updates), state.inner, params, **extra)
        updates, inner_state = found
        updates = map_kernels(masked, updates)
        before, step = recurrent_kernels(params), state.step + 1
        after = {name: before[name] + update for name, update in recurrent_kernels(updates).items()}
        masks = next_masks(step, after, state.masks)
        updates = map_kernels(lambda name, update: where_kept(masks[name], update, -before[name]), updates)
        return updates, PruningState(inner_state, step, masks)

    return optax.GradientTransformationExtraArgs(init, update)
