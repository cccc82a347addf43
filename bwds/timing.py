"""How long functions take, side by side.

Functions that are compared are timed in turns, so that a busy machine slows all of them. A time is the median over the
turns, given with its quartiles.
"""

import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from pallas_kernels.threads import cores


class Timing(tuple):
    """Seconds of one call: (lower quartile, median, upper quartile)."""

    @property
    def median(self) -> float:
        """The time that is reported."""
        return self[1]


def require_turns(turns: int) -> None:
    """Raises ``ValueError`` unless there are enough turns: quartiles of two times would lie beyond both."""
    if turns < 3:
        raise ValueError(f"The number of turns is {turns}; quartiles need at least 3.")


def time_in_turns(calls: dict[Any, Callable[[], Any]], *, turns: int = 15, least: float = 0.02) -> dict[Any, Timing]:
    """Seconds of each call, compiled and warm.

    Each turn begins with a call that is not timed. Memory of the function before it may still be being freed after its
    result is there: for tens of milliseconds after a dense product of bfloat16 on a CPU.

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
    """Calls each function once: the dense ones alone, then the others side by side.

    The compiler uses one core per program. On a GPU, XLA times dense products to choose one, and needs the device for
    itself.
    """
    dense = [call for name, call in calls.items() if "dense" in str(name)]
    for call in dense:
        jax.block_until_ready(call())
    with ThreadPoolExecutor(max(1, cores() - 1)) as pool:
        list(pool.map(lambda call: jax.block_until_ready(call()), [c for c in calls.values() if c not in dense]))


PAYS = 1.05
"""The speed-up over dense above which skipping pays; times of equal programs may differ by less."""


def verdict(speedups: dict[float, dict[int, float]], against: str) -> str:
    """A sentence that says from which width on skipping blocks is faster by more than ``PAYS``.

    Args:
        speedups: by sparsity and width, the speed-up over the dense model.
        against: the dense model, in words.
    """
    gains, never = [], []
    for sparsity, widths in sorted(speedups.items()):
        faster = [h for h in sorted(widths) if all(widths[w] > PAYS for w in widths if w >= h)]
        if faster:
            gains.append(f"at sparsity {sparsity} from a width of {faster[0]} on")
        else:
            never.append(str(sparsity))
    if not gains:
        return f"Skipping pays at no measured width at sparsity {' or '.join(never)}, against {against}."
    but = f", but at no measured width at sparsity {' or '.join(never)}" if never else ""
    return f"Skipping pays {', '.join(gains)}{but}, against {against}."
