"""Parameters of a run that was trained."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax

from bwds.config import Config
from bwds.data import Vocabulary
from bwds.linear import Params
from bwds.model import language_model
from bwds.training.checkpoint import best_checkpoints, last_checkpoints
from bwds.training.identity import check_identity
from bwds.training.optim import make_optimizer
from bwds.training.pruning import hold_fixed
from bwds.training.step import evaluated_params, init_state
from bwds.training.workdir import VOCABULARY_FILE


def load_params(config: Config, workdir: Path, which: Literal["best", "last"]) -> tuple[Params, int]:
    """Parameters of a run and the step they are from; see ``load_checkpoint``."""
    params, info = load_checkpoint(config, workdir, which)
    return params, info["step"]


def load_checkpoint(config: Config, workdir: Path, which: Literal["best", "last"]) -> tuple[Params, dict[str, Any]]:
    """Parameters of a run, as it evaluates them, and what is kept beside them; nothing in the folder is changed.

    Args:
        config: the run's.
        workdir: the run's folder.
        which: "best": the lowest validation loss; "last": the latest state.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or it was made with another model or vocabulary than
            those in the folder.
    """
    vocabulary = Vocabulary.load(workdir / VOCABULARY_FILE)
    lm = language_model(config.model)
    if which == "last":
        optimizer = hold_fixed(make_optimizer(config.optim, config.train.steps), config)
        fresh = partial(init_state, lm, optimizer, batch_size=config.data.batch_size)
        template = jax.eval_shape(fresh, jax.random.key(0))
        state, info = last_checkpoints(workdir, read_only=True).restore(template)
        params = evaluated_params(state)
    else:
        params, info = best_checkpoints(workdir, read_only=True).restore(jax.eval_shape(lm.init, jax.random.key(0)))
    check_identity(info, config.model, vocabulary, workdir)
    return params, info
