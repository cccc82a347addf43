"""The checkpoints of a run while it trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bwds.linear import Params
from bwds.training.checkpoint import best_checkpoints, last_checkpoints
from bwds.training.identity import check_text
from bwds.training.sharding import Placement
from bwds.training.step import NonFiniteError, TrainState, all_finite


class Kept:
    """The last states, from which training resumes, and the best parameters.

    Args:
        workdir: the run's folder.
        identity: JSON values that are kept beside each checkpoint, ``text_sha256`` among them.
    """

    def __init__(self, workdir: Path, identity: dict[str, Any]) -> None:
        self._workdir, self._identity = workdir, identity
        self._last, self.best = last_checkpoints(workdir), best_checkpoints(workdir)
        self.saved: int | None = None
        """Step of the newest state that is kept; None: there is none yet."""

    def newest(self, fresh: Callable[[Any], TrainState], key: Any, placement: Placement) -> TrainState:
        """The newest state that is kept, or ``fresh(key)``.

        Raises:
            ValueError: it was made with another text.
        """
        if self._last.steps:
            state, info = self._last.restore(placement.template(fresh, key))
            check_text(info, self._identity["text_sha256"], self._workdir)
            self.saved = info["step"]
        else:
            state = fresh(key)
        # A new and a restored state, and one that an evaluation changed, have one placement, so jit compiles once.
        return jax.device_put(state, placement.shardings(state))

    def save(self, step: int, state: TrainState) -> None:
        """Writes a state, unless it is the one that was saved last or resumed from.

        Raises:
            NonFiniteError: the state is not finite; it is not written.
        """
        if self.saved == step:
            return
        if not all_finite((state.params, state.opt_state, state.carry)):
            raise self.failure(f"Parameters are not finite after step {step}")
        self._last.save(step, state, **self._identity)
        self.saved = step

    def save_best(self, step: int, params: Params, **figures: float) -> None:
        """Writes the best parameters so far, with the figures of their evaluation."""
        self.best.save(step, params, **figures, **self._identity)

    def failure(self, what: str) -> NonFiniteError:
        """The error for numbers that are not finite. It names the last good checkpoint."""
        good = "There is no checkpoint yet" if self.saved is None else f"The last good checkpoint is step {self.saved}"
        return NonFiniteError(
            f"{what}. {good} in {self._last.directory}. Training stops here; try a smaller optim.learning_rate or "
            "optim.clip_norm, or model.gate_activation='softplus' if gates are linear, in another workdir."
        )

    def stopped(self, error: OSError, step: int) -> OSError:
        """The error of the system, with a sentence on how to go on with the run."""
        start = "it starts anew" if self.saved is None else f"it goes on from the checkpoint of step {self.saved}"
        return OSError(
            f"{error} Training stopped after step {step}. Make room, or see to the folder, and give the same "
            f"command again: {start}."
        )
