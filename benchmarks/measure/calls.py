"""Times of short functions, called over and over with one weight after the other.

On a CPU Python makes each call: the dispatch takes some 10 us, a product hundreds. On a GPU or TPU a product may take
less than its dispatch, so there one program makes many calls. It loops over the weights, which are separate arrays,
because an index into one array of all weights would copy a weight. (On a CPU in bfloat16 the loop changes what XLA
makes of a product, for better or worse; in float32 both ways give the same times.)
"""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bwds.timing import Timing, time_in_turns

CALLS, TURNS = 16, 4
"""One program loops for ``TURNS`` turns of at least ``CALLS`` calls, so its own kernels count little."""

Case = tuple[Callable[..., Any], tuple[Any, ...], list[Any]]
"""The jitted ``function(*inputs, weight)``; its inputs; the weights that the calls take in turn."""


@partial(jax.jit, static_argnames=("function", "turns"))
def chained(function: Callable[..., Any], inputs: tuple[Any, ...], weights: list[Any], *, turns: int) -> Any:
    """Calls the function with every weight, ``turns`` times over, each call after the one before it has ended.

    The barrier keeps the calls of a turn apart, so that XLA neither merges two of them nor makes one serve for all. The
    inputs of the next turn depend on all results of this one, so nothing can move out of the loop; their values change
    only if there is a NaN. On a GPU a turn adds three small kernels to the calls.
    """

    def turn(_: Any, state: Any) -> Any:
        inputs, _ = state
        seen = []
        for weight in weights:
            inputs, results = lax.optimization_barrier((inputs, function(*inputs, weight)))
            seen += [result.reshape(-1)[:1].astype(jnp.float32) for result in jax.tree.leaves(results)]
        total = jnp.concatenate(seen).sum()
        return jax.tree.map(lambda x: jnp.where(jnp.isnan(total), x + 1, x), inputs), total

    return lax.fori_loop(0, turns, turn, (inputs, jnp.float32(0.0)))


def repeated(
    function: Callable[..., Any], inputs: tuple[Any, ...], weights: list[Any]
) -> tuple[Callable[[], Any], int]:
    """A call without arguments, and how many calls of the function it makes."""
    if jax.default_backend() == "cpu":
        turn = itertools.cycle(weights)
        return lambda: function(*inputs, next(turn)), 1
    weights = weights * math.ceil(CALLS / len(weights))
    return lambda: chained(function, inputs, weights, turns=TURNS), TURNS * len(weights)


def timed(cases: dict[Any, Case], **options: Any) -> dict[Any, Timing]:
    """Seconds of one call of each function, in turns; ``options`` are those of ``time_in_turns``."""
    calls = {name: repeated(*case) for name, case in cases.items()}
    times = time_in_turns({name: call for name, (call, _) in calls.items()}, **options)
    return {name: Timing(q / calls[name][1] for q in t) for name, t in times.items()}
