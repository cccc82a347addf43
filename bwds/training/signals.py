"""Ctrl-C, SIGTERM and similar signals as a request that a loop answers when its state is whole."""

import contextlib
import os
import signal
import sys
import threading
from typing import Any

ANSWERED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Ctrl-C (SIGINT); the end of a job (SIGTERM); a closed terminal (SIGHUP); signals with which batch systems announce an
end (SIGUSR1, SIGUSR2: SLURM if configured, Grid Engine with -notify, LSF); and a limit on processor time, ``ulimit -t``
(SIGXCPU, sent every second)."""


class InterruptedRunError(Exception):
    """A run was stopped by a signal; its state is saved.

    Attributes:
        signum: the signal.
    """

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message)
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, as in shells; 0 for the others, which a scheduler sends: the run is saved, so all is well."""
        return 128 + signal.SIGINT if self.signum == signal.SIGINT else 0


class StopSignals:
    """A context that notes the first of the signals ``ANSWERED``; a second Ctrl-C ends the process at once.

    If SIGHUP is ignored, as under nohup, it stays ignored. Outside the main thread, where Python cannot handle signals,
    the context does nothing.

    Args:
        together: several processes stop at the same step, so a signal counts only when all know of it, by ``hear``.
    """

    def __init__(self, *, together: bool = False) -> None:
        self._together = together
        self._signum: int | None = None
        self._heard: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
            self._previous = {s: signal.signal(s, self._note) for s in ANSWERED if s not in ignored}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _: object) -> None:
        if self._signum == signal.SIGINT == signum:
            os._exit(128 + signal.SIGINT)
        if self._signum is not None and signum != signal.SIGINT:
            return
        self._signum = self._signum or signum
        # Not by print, because the signal may have come in the middle of a call of print.
        hint = "; Ctrl-C again ends it at once, without" if signum == signal.SIGINT else ""
        text = f"\nStopping after this step and saving a checkpoint{hint}.\n"
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.write(sys.stderr.fileno(), text.encode())

    @property
    def noted(self) -> int:
        """The number of the signal that has come to this process; 0: none."""
        return self._signum or 0

    def hear(self, signum: int) -> None:
        """Notes the number of the signal that has come to any process; 0: none."""
        self._heard = self._heard or signum or None

    @property
    def counts(self) -> int:
        """The signal to answer; 0: none."""
        return (self._heard if self._together else self._signum) or 0

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.counts != 0

    def check(self) -> None:
        """Raises ``InterruptedRunError`` if a signal has come."""
        if self.counts:
            raise InterruptedRunError(self.counts)
