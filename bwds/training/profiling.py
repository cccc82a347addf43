"""A trace of some training steps, of host and devices, for xprof or TensorBoard."""

from pathlib import Path
from typing import Any

import jax

from bwds.output import tell

# The first step of a process compiles, and the next two fill the queue.
WARM_UP = 3


class StepTrace:
    """Records some steps of a loop, after the first three of the process.

    Args:
        folder: gets plugins/profile/TIME/HOST.xplane.pb, where TensorBoard and xprof look for it.
        start: the step at which the process begins.
        steps: how many to record; 0: none.
    """

    def __init__(self, folder: Path, *, start: int, steps: int) -> None:
        self._folder = folder
        self._first, self._last = start + WARM_UP, start + WARM_UP + steps
        self._running, self._to_come = False, steps > 0

    def before(self, step: int) -> None:
        """Call it before a step is started; ``step``: the number of steps started so far."""
        if step == self._first < self._last:
            jax.profiler.start_trace(self._folder)
            self._running, self._to_come = True, False

    def after(self, step: int, result: Any) -> None:
        """Call it after a step is started; ``step``: the number with it. Waits for the result of the last of them."""
        if self._running and step == self._last:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Ends a trace that is still running; warns if the loop ended before a trace began."""
        if self._to_come:
            tell(f"warning: nothing was traced: the first {WARM_UP} steps of a process are left out.")
            self._to_come = False
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
