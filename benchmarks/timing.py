"""Times in turns, and measured bounds.

Two functions are never timed one after the other but in turns, so that a busy machine slows both. A time is the
median over the turns, given with its quartiles.
"""

import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.environment import cores


class Timing(tuple):
    """Seconds of one call: (lower quartile, median, upper quartile)."""

    @property
    def median(self) -> float:
        """The time that is reported."""
        return self[1]


def require_turns(turns: int) -> None:
    """Raises ``ValueError`` unless there are enough turns: the quartiles of two would lie beyond both."""
    if turns < 3:
        raise ValueError(f"The number of turns is {turns}; quartiles need at least 3.")


def time_in_turns(calls: dict[Any, Callable[[], Any]], *, turns: int = 15, least: float = 0.02) -> dict[str, Timing]:
    """Seconds of each call, compiled and warm.

    Before its turn each function is called once more: memory that the one before it took is still being given back
    when its result is there, for tens of milliseconds after a dense product of bfloat16 on a CPU.

    Args:
        calls: functions without arguments that return arrays.
        turns: how often each function gets its turn.
        least: seconds of one turn; a fast function is called several times.
    """
    require_turns(turns)
    _compile(calls)
    repeats = {}
    for name, call in calls.items():
        start = time.perf_counter()
        jax.block_until_ready(call())
        repeats[name] = max(1, math.ceil(least / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            out = jax.block_until_ready(call())
            start = time.perf_counter()
            for _ in range(repeats[name]):
                out = call()
            jax.block_until_ready(out)
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return {name: Timing(statistics.quantiles(values, n=4)) for name, values in seconds.items()}


def _compile(calls: dict[Any, Callable[[], Any]]) -> None:
    """Calls each once: the dense ones alone, then the others side by side, as a compiler takes one core for a program.

    XLA chooses among dense products of a GPU by timing them, and wants the device for itself.
    """
    dense = [call for name, call in calls.items() if "dense" in str(name)]
    for call in dense:
        jax.block_until_ready(call())
    with ThreadPoolExecutor(max(1, cores() - 1)) as pool:
        list(pool.map(lambda call: jax.block_until_ready(call()), [c for c in calls.values() if c not in dense]))


def fields(times: dict[str, Timing], unit: str = "us") -> dict[str, Any]:
    """Median and quartiles of each call, as they are written down."""
    scale = {"us": 1e6, "ms": 1e3}[unit]
    medians = {f"{name}_{unit}": t.median * scale for name, t in times.items()}
    return medians | {f"{name}_quartiles_{unit}": [float(f"{q * scale:.5g}") for q in t] for name, t in times.items()}


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes a second of a large update in place, read and written."""
    x = jnp.zeros((megabytes * 2**18,), jnp.float32)
    bytes_moved = 2 * x.nbytes
    update = jax.jit(lambda x: x + 1.0, donate_argnums=0)

    def call():
        nonlocal x
        x = update(x)
        return x

    return bytes_moved / time_in_turns({"copy": call}, turns=7)["copy"].median


def matmul_rate(dtype: Any = jnp.float32, size: int | None = None) -> float:
    """Floating-point operations a second of a square product, two for a multiply-add.

    Args:
        dtype: of the matrices.
        size: rows and columns; None: 2048 on a CPU, 8192 on anything that a smaller product does not fill.
    """
    if size is None:
        size = 2048 if jax.default_backend() == "cpu" else 8192
    # A chip draws less power, and may run faster, on matrices of ones.
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / time_in_turns({"product": lambda: product(x)}, turns=7)["product"].median
