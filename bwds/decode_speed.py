"""How fast a model decodes at batch 1: the whole model, gates included."""

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp

from bwds.config import ModelConfig
from bwds.generate import greedy_rollout
from bwds.linear import Params
from bwds.model import LanguageModel, decode_params, language_model


def _seconds(lm: LanguageModel, params: Params, steps: int) -> float:
    first, carry = jax.block_until_ready((jnp.zeros(1, jnp.int32), lm.init_carry(1)))
    start = time.perf_counter()
    jax.block_until_ready(greedy_rollout(lm, params, first, carry, steps=steps))
    return time.perf_counter() - start


def decode_speed(lm: LanguageModel, params: Params, *, steps: int = 32, repeats: int = 7) -> float:
    """Tokens per second of greedy decoding at batch 1: the whole model, gates included, compiled and warm.

    Args:
        lm: the model.
        params: its parameters; those that ``decode_params`` lays out are the fastest.
        steps: tokens of one measurement.
        repeats: measurements, of which the median counts.
    """
    _seconds(lm, params, steps)
    return steps / statistics.median(_seconds(lm, params, steps) for _ in range(repeats))


def compare_decode_speed(
    config: ModelConfig, params: Params, *, steps: int = 32, repeats: int = 7
) -> dict[str, float | None]:
    """Decoding speed at batch 1 of a model and of the dense model of the same size, measured in turns.

    Speed does not depend on the values of parameters, so the dense model gets random ones.

    Args:
        config: the model.
        params: its parameters, as ``lm.init`` makes them.
        steps: tokens of one measurement.
        repeats: measurements of each model, of which the medians count.

    Returns:
        decode_tokens_per_second; dense_decode_tokens_per_second and decode_speedup, both None for a dense model.
    """
    lm = language_model(config)
    laid_out = decode_params(params, config)
    if config.method == "dense":
        speed = decode_speed(lm, laid_out, steps=steps, repeats=repeats)
        return {
            "decode_tokens_per_second": speed,
            "dense_decode_tokens_per_second": None,
            "decode_speedup": None,
        }
    dense_config = dataclasses.replace(config, method="dense")
    dense_lm = language_model(dense_config)
    dense_params = decode_params(jax.jit(dense_lm.init)(jax.random.key(0)), dense_config)
    _seconds(lm, laid_out, steps)
    _seconds(dense_lm, dense_params, steps)
    times = [(_seconds(lm, laid_out, steps), _seconds(dense_lm, dense_params, steps)) for _ in range(repeats)]
    speed, dense_speed = (steps / statistics.median(column) for column in zip(*times, strict=True))
    return {
        "decode_tokens_per_second": speed,
        "dense_decode_tokens_per_second": dense_speed,
        "decode_speedup": speed / dense_speed,
    }
