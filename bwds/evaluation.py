"""Mean loss of a model over a whole split."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bwds.array_types import Array, Float, Float32, Int32
from bwds.config import DataConfig
from bwds.data import eval_batches
from bwds.linear import Params
from bwds.model import LanguageModel


class Evaluation(NamedTuple):
    """Mean loss in nats per token over a split, realised density, and the number of tokens."""

    loss: float
    density: float
    tokens: int


@partial(jax.jit, static_argnames="lm")
def eval_step(
    lm: LanguageModel,
    params: Params,
    carry: Any,
    inputs: Int32[Any, "B T"],
    targets: Int32[Any, "B T"],
    weights: Float32[Any, "B T"],
    sparsity: Float[Any, ""] | None,
) -> tuple[Any, Float32[Array, ""], Float32[Array, ""]]:
    """Carry, sum of the weighted losses in nats, and density of one batch."""
    logits, carry, info = lm.apply(params, inputs, carry, sparsity=sparsity)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
    return carry, (losses * weights).sum(), info.density


def evaluate(
    lm: LanguageModel,
    params: Params,
    ids: Int32[np.ndarray, " n"],
    data_config: DataConfig,
    eos_id: int,
    *,
    sparsity: Float[Any, ""] | None = None,
    after_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Loss over all tokens of a split, each counted once; state runs on through the split.

    Args:
        lm: the model.
        params: its parameters.
        ids: the split's tokens.
        data_config: gives ``eval_batch_size`` and ``sequence_length``.
        eos_id: the token before the first.
        sparsity: a scalar for schedules; None: the model's own.
        after_batch: called after every batch; may raise to give up.
    """
    carry, results = None, []
    for batch in eval_batches(
        ids, batch_size=data_config.eval_batch_size, sequence_length=data_config.sequence_length, eos_id=eos_id
    ):
        if carry is None:
            # Placed like the parameters, as every later carry is, so that one compilation serves all batches.
            carry = jax.device_put(lm.init_carry(batch.inputs.shape[0]), jax.tree.leaves(params)[0].sharding)
        carry, *result = eval_step(lm, params, carry, batch.inputs, batch.targets, batch.weights, sparsity)
        results.append(result)
        # One batch behind: the device always has work, and never a whole split of it.
        jax.block_until_ready(results[-2:-1])
        after_batch()
    losses, densities = np.array(jax.device_get(results), np.float64).T
    return Evaluation(losses.sum() / len(ids), densities.mean(), len(ids))
