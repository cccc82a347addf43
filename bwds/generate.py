"""Text from a model, and how fast it decodes: loops under one jit, one token a step at batch 1."""

import dataclasses
import math
import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bwds.arguments import Tree, fitting_tokens, plain
from bwds.array_types import Array, Float, Int, Int32, Key, Real, Whole
from bwds.checks import known_number
from bwds.config import ModelConfig
from bwds.model import LanguageModel, decode_params, language_model

Params = dict[str, Any]


def sample(
    key: Key[Array, ""],
    logits: Float[Array, " V"],
    *,
    temperature: float | Float[Array, ""] | None,
    top_p: float | Float[Array, ""] | None,
) -> Int32[Array, ""]:
    """One word from softmax(logits / temperature), cut to its nucleus (Holtzman et al., arXiv 1904.09751).

    The nucleus is the smallest set of most probable words that together have at least probability ``top_p``; among
    equals the first come first. Only the cut sorts the vocabulary, which costs far more than a draw from all of it.

    Args:
        key: of the draw.
        logits: [V].
        temperature: at least 1.2e-38, the smallest normal float32; None takes the most probable word.
        top_p: in (0, 1]; None draws from all words.
    """
    if temperature is None:
        return logits.argmax().astype(jnp.int32)
    # At most zero, so that no temperature makes them infinite.
    scaled = (logits - logits.max()) / temperature
    if top_p is None:
        return jax.random.categorical(key, scaled).astype(jnp.int32)
    order = jnp.argsort(-logits, stable=True)
    scaled = scaled[order]
    probabilities = jax.nn.softmax(scaled)
    before = jnp.cumsum(probabilities) - probabilities
    # The first is always in, whatever rounding makes of the sum before it.
    inside = (before < top_p).at[0].set(True)
    drawn = jax.random.categorical(key, jnp.where(inside, scaled, -jnp.inf))
    return order[drawn].astype(jnp.int32)


@partial(jax.jit, static_argnames=("lm", "length"))
def _decode(
    lm: LanguageModel,
    params: Params,
    prompt: Int32[Array, " P"],
    key: Key[Array, ""],
    temperature: Float[Array, ""] | None,
    top_p: Float[Array, ""] | None,
    length: int,
) -> Int32[Array, " length"]:
    def step(state: Any, key: Array) -> tuple[Any, Array]:
        logits, carry = state
        token = sample(key, logits, temperature=temperature, top_p=top_p)
        logits, carry, _ = lm.apply(params, token[None, None], carry)
        return (logits[0, -1], carry), token

    logits, carry, _ = lm.apply(params, prompt[None, :], lm.init_carry(1))
    _, tokens = lax.scan(step, (logits[0, -1], carry), jax.random.split(key, length))
    return tokens


def generate(
    lm: LanguageModel,
    params: Tree,
    prompt_ids: Any,
    *,
    key: Key[Array, ""],
    length: Whole,
    temperature: Real = 1.0,
    top_p: Real = 1.0,
) -> Int32[Array, " length"]:
    """Words that follow a prompt, drawn one after the other.

    Compiled once for a model, a length, a length of the prompt and a way to choose words, of which there are three:
    the most probable one, any, and one of the most probable. Nothing is read back before the last word.

    Args:
        lm: the model.
        params: its parameters, best as ``decode_params`` lays them out.
        prompt_ids: at least one token, [P], of Python, NumPy or JAX; ``<eos>`` alone starts a new line.
        key: the same key gives the same words.
        length: number of words, at least 1.
        temperature: divides the logits; 0, and what is below 1.2e-38, always takes the most probable word.
        top_p: in (0, 1]: draws from the most probable words that together have this probability. Below 1 it sorts the
            vocabulary for every word.

    Returns:
        The new tokens, int32 [length].

    Raises:
        ValueError: an argument is out of range.
    """
    params = plain("params", params)
    prompt: Any = prompt_ids if isinstance(prompt_ids, jax.core.Tracer) else np.asarray(prompt_ids)
    if prompt.ndim != 1 or not prompt.size:
        raise ValueError(f"prompt_ids have shape {prompt.shape}; they must be [P] with at least one token.")
    # Where there is no embedding, the model says so.
    words = np.shape(params.get("embedding", {}))
    prompt = fitting_tokens("prompt_ids", prompt, words[0] if words else 2**31)
    length = known_number("length", length, whole=True)
    temperature, top_p = known_number("temperature", temperature), known_number("top_p", top_p)
    if not 1 <= length < 2**31:
        raise ValueError(f"The number of words is {length}; it must be at least 1 and less than 2**31.")
    if not 0.0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be at least 0 and finite.")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p is {top_p}; it must be above 0 and at most 1.")
    greedy = temperature < jnp.finfo(jnp.float32).tiny
    return _decode(
        lm,
        params,
        prompt,
        key,
        None if greedy else jnp.float32(temperature),
        None if greedy or top_p == 1.0 else jnp.float32(top_p),
        length,
    )


@partial(jax.jit, static_argnames=("lm", "steps"))
def greedy_rollout(
    lm: LanguageModel, params: Params, first: Int[Array, " B"], carry: Any, *, steps: int
) -> tuple[Int32[Array, "B steps"], Any]:
    """The most probable word after each, in B streams side by side; nothing is read back between two words.

    Args:
        lm: the model.
        params: its parameters, best as ``decode_params`` lays them out.
        first: the word that each stream starts with, [B].
        carry: state before these words, as ``lm.init_carry(B)`` makes it.
        steps: number of words, at least 1.

    Returns:
        The words that follow, int32 [B, steps], and the carry with which the last of them goes on.
    """

    def step(state: Any, _: Any) -> tuple[Any, Array]:
        tokens, carry = state
        logits, carry, _ = lm.apply(params, tokens[:, None], carry)
        tokens = logits[:, -1].argmax(-1).astype(jnp.int32)
        return (tokens, carry), tokens

    (_, carry), tokens = lax.scan(step, (first.astype(jnp.int32), carry), length=steps)
    return tokens.swapaxes(0, 1), carry


def _seconds(lm: LanguageModel, params: Params, steps: int) -> float:
    first, carry = jax.block_until_ready((jnp.zeros(1, jnp.int32), lm.init_carry(1)))
    start = time.perf_counter()
    jax.block_until_ready(greedy_rollout(lm, params, first, carry, steps=steps))
    return time.perf_counter() - start


def decode_speed(lm: LanguageModel, params: Params, *, steps: int = 32, repeats: int = 7) -> float:
    """Tokens per second of greedy decoding at batch 1: the whole model, gates included, compiled and warm.

    Args:
        lm: the model.
        params: its parameters, best as ``decode_params`` lays them out.
        steps: tokens of one measurement.
        repeats: measurements, of which the median counts.
    """
    _seconds(lm, params, steps)
    return steps / statistics.median(_seconds(lm, params, steps) for _ in range(repeats))


def compare_decode_speed(
    config: ModelConfig, params: Params, *, steps: int = 32, repeats: int = 7
) -> dict[str, float | None]:
    """Decoding speed at batch 1 of a model and of the dense one of the same size, measured in turns.

    Speed does not depend on the values of parameters, so those of the dense model are random.

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
