"""How fast a model decodes: the whole model, gates included."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bwds.array_types import Array, Int32
from bwds.config import ModelConfig
from bwds.generate import greedy_rollout
from bwds.linear import Params
from bwds.model import decode_params, language_model
from bwds.timing import time_in_turns


def decoding(
    config: ModelConfig, params: Params, *, steps: int, first: Int32[Array, " B"] | None = None
) -> Callable[[], Any]:
    """A function that decodes greedily under one jit, as ``bwds.timing`` takes it.

    Args:
        config: the model's.
        params: its parameters; those that ``decode_params`` lays out are the fastest.
        steps: number of tokens.
        first: the token that each of B streams starts with; None: one stream.

    Returns:
        A function without arguments that returns what ``greedy_rollout`` does.
    """
    lm = language_model(config)
    first = jnp.zeros(1, jnp.int32) if first is None else first
    carry = lm.init_carry(first.shape[0])
    return lambda: greedy_rollout(lm, params, first, carry, steps=steps)


def compare_decode_speed(
    config: ModelConfig, params: Params, *, steps: int = 32, turns: int = 7
) -> dict[str, float | None]:
    """Decoding speed at batch 1 of a model and of the dense model of the same size, measured in turns.

    Speed does not depend on the values of parameters, so the dense model gets random ones.

    Args:
        config: the model.
        params: its parameters, as ``lm.init`` makes them.
        steps: tokens of one measurement.
        turns: measurements of each model, of which the medians count.

    Returns:
        decode_tokens_per_second; dense_decode_tokens_per_second and decode_speedup, both None for a dense model.
    """
    calls = {"model": decoding(config, decode_params(params, config), steps=steps)}
    if config.method != "dense":
        dense = dataclasses.replace(config, method="dense")
        drawn = jax.jit(language_model(dense).init)(jax.random.key(0))
        calls["dense"] = decoding(dense, decode_params(drawn, dense), steps=steps)
    times = time_in_turns(calls, turns=turns, least=0.0)
    speeds = {name: steps / time.median for name, time in times.items()}
    return {
        "decode_tokens_per_second": speeds["model"],
        "dense_decode_tokens_per_second": speeds.get("dense"),
        "decode_speedup": speeds["model"] / speeds["dense"] if "dense" in speeds else None,
    }
