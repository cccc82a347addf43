"""Draws one token from logits: the most probable one, any, or one of the most probable."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bwds.arguments import fitting_tokens
from bwds.array_types import Array, Bool, Float, Int32, Key, Real
from bwds.checks import known_number, require


class Choice(NamedTuple):
    """How tokens are chosen. Each field that is None saves its computation.

    Attributes:
        temperature: divides the logits; None: take the most probable token.
        top_p: probability of the nucleus; None: draw from all tokens.
        banned: a mask [V] of tokens that are never chosen; None: there are none.
    """

    temperature: Float[Array, ""] | None
    top_p: Float[Array, ""] | None
    banned: Bool[Array, " V"] | None


def choice(temperature: Real, top_p: Real, ban: Any, vocab_size: int) -> Choice:
    """The ``Choice`` of a user's numbers and banned ids.

    Raises:
        ValueError: one of them is out of range, or every token is banned.
    """
    temperature, top_p = known_number("temperature", temperature), known_number("top_p", top_p)
    require(0.0 <= temperature < math.inf, f"temperature is {temperature}; it must be at least 0 and finite.")
    require(0.0 < top_p <= 1.0, f"top_p is {top_p}; it must be above 0 and at most 1.")
    greedy = temperature < jnp.finfo(jnp.float32).tiny
    banned = None
    if len(ban):
        banned = jnp.zeros(vocab_size, bool).at[fitting_tokens("ban", np.asarray(ban), vocab_size)].set(True)
        require(not banned.all(), f"ban holds all {vocab_size} tokens; one at least must be left to choose.")
    return Choice(
        None if greedy else jnp.float32(temperature),
        None if greedy or top_p == 1.0 else jnp.float32(top_p),
        banned,
    )


def choose(how: Choice, keys: Key[Array, " B"], logits: Float[Array, "B V"]) -> Int32[Array, " B"]:
    """One token for every row, each with a key of its own."""
    if how.banned is not None:
        logits = jnp.where(how.banned[None, :], -jnp.inf, logits)

    def one(key: Array, row: Array) -> Array:
        return sample(key, row, temperature=how.temperature, top_p=how.top_p)

    return jax.vmap(one)(keys, logits)


def sample(
    key: Key[Array, ""],
    logits: Float[Array, " V"],
    *,
    temperature: float | Float[Array, ""] | None,
    top_p: float | Float[Array, ""] | None,
) -> Int32[Array, ""]:
    """One token from softmax(logits / temperature), cut to its nucleus (Holtzman et al., arXiv 1904.09751).

    The nucleus is the smallest set of most probable tokens that together have at least probability ``top_p``; among
    equals the first come first. Only the cut sorts the vocabulary, which costs far more than a draw from all of it.

    Args:
        key: of the draw.
        logits: [V].
        temperature: at least 1.2e-38, the smallest normal float32; None takes the most probable token.
        top_p: in (0, 1]; None draws from all tokens.
    """
    if temperature is None:
        return logits.argmax().astype(jnp.int32)
    # Differences from the largest logit are at most zero, so no temperature makes them positive infinity.
    scaled = (logits - logits.max()) / temperature
    if top_p is None:
        return jax.random.categorical(key, scaled).astype(jnp.int32)
    order = jnp.argsort(-logits, stable=True)
    scaled = scaled[order]
    probabilities = jax.nn.softmax(scaled)
    before = jnp.cumsum(probabilities) - probabilities
    # The first token is always inside, even if rounding makes the sum before it larger than zero.
    inside = (before < top_p).at[0].set(True)
    drawn = jax.random.categorical(key, jnp.where(inside, scaled, -jnp.inf))
    return order[drawn].astype(jnp.int32)
