"""Mean loss of a model over a whole split."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from bwds.array_types import Array, Float, Float32, Int32
from bwds.collectives import DATA, pmean, psum
from bwds.config import DataConfig
from bwds.data.batches import eval_batches
from bwds.linear import Params
from bwds.losses import cross_entropy
from bwds.model import LanguageModel
from bwds.training.sharding import P, Placement, over_devices


class Evaluation(NamedTuple):
    """Mean loss in nats per token over a split, realised density, and the number of tokens.

    For a dynamic model also the share of inputs that used each block, [R, C], by the name of the matrix. This is a mean
    over all inputs, padding included; ``bwds.training.usage`` counts only tokens of the text.
    """

    loss: float
    density: float
    tokens: int
    usage: Mapping[str, Float[np.ndarray, "R C"]] = MappingProxyType({})


@partial(jax.jit, static_argnames=("lm", "placement"))
def eval_step(
    lm: LanguageModel,
    params: Params,
    carry: Any,
    inputs: Int32[Any, "B T"],
    targets: Int32[Any, "B T"],
    weights: Float32[Any, "B T"],
    sparsity: Float[Any, ""] | None,
    placement: Placement | None = None,
) -> tuple[Any, Float32[Array, ""], Float32[Array, ""], dict[str, Float32[Array, "R C"]]]:
    """Carry, sum of the weighted losses in nats, density and usage of one batch."""

    def measure(params, carry, inputs, targets, weights, sparsity):
        logits, carry, info = lm.apply(params, inputs, carry, sparsity=sparsity)
        loss = (cross_entropy(logits, targets) * weights).sum()
        return carry, psum(loss, DATA), pmean(info.density), pmean(info.usage)

    params_spec, rows = (P(), P()) if placement is None else (placement.specs(params), placement.rows)
    in_specs, out_specs = (params_spec, rows, rows, rows, rows, P()), (rows, P(), P(), P())
    return over_devices(placement, measure, in_specs, out_specs)(params, carry, inputs, targets, weights, sparsity)


def evaluate(
    lm: LanguageModel,
    params: Params,
    ids: Int32[np.ndarray, " n"],
    data_config: DataConfig,
    eos_id: int,
    *,
    sparsity: Float[Any, ""] | None = None,
    after_batch: Callable[[], None] = lambda: None,
    placement: Placement | None = None,
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
        placement: of the parameters; None: on one device.

    Returns:
        The mean loss in nats per token, over how many tokens, and what the gates kept on average.

    Raises:
        ValueError: ``ids`` is empty.
    """
    carry, rows, results = None, 0, []
    for batch in eval_batches(
        ids, batch_size=data_config.eval_batch_size, sequence_length=data_config.sequence_length, eos_id=eos_id
    ):
        if carry is None:
            # The first carry is placed like the later ones, so that one compilation serves all batches.
            there = jax.tree.leaves(params)[0].sharding if placement is None else placement.sharding(placement.rows)
            rows = _rows(len(batch.inputs), placement)
            carry = jax.jit(lm.init_carry, static_argnums=0, out_shardings=there)(rows)
        arrays = [_spread(array, rows, placement) for array in batch]
        carry, *result = eval_step(lm, params, carry, *arrays, sparsity, placement)
        results.append(result)
        # Waiting for the batch before keeps the device busy without queueing a whole split.
        jax.block_until_ready(results[-2:-1])
        after_batch()
    losses, densities, usages = zip(*jax.device_get(results), strict=True)
    usage = jax.tree.map(lambda *batches: np.mean(batches, 0, np.float64), *usages)
    return Evaluation(
        np.sum(losses, dtype=np.float64) / len(ids), np.mean(densities, dtype=np.float64), len(ids), usage
    )


def _rows(count: int, placement: Placement | None) -> int:
    """The least number of rows that has room for ``count`` and is spread evenly."""
    devices = 1 if placement is None else placement.mesh.shape[DATA]
    return -(-count // devices) * devices


def _spread(array: np.ndarray, rows: int, placement: Placement | None) -> Any:
    """The rows of a batch on their devices, filled up with rows of zeros, whose losses have weight zero."""
    if placement is None:
        return array
    full = np.pad(array, ((0, rows - len(array)), (0, 0)))
    return placement.spread_rows(full.shape, lambda own: full[own])
