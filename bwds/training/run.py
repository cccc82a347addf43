"""The objects that the loop of one call of ``train`` works on."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax

from bwds.config import Config
from bwds.data import Corpus
from bwds.linear import Params
from bwds.model import LanguageModel, language_model
from bwds.training.identity import identity, text_identity
from bwds.training.kept import Kept
from bwds.training.log import Log
from bwds.training.optim import Optimizer, make_optimizer
from bwds.training.processes import first_alone
from bwds.training.pruning import hold_fixed
from bwds.training.sharding import Placement
from bwds.training.signals import StopSignals
from bwds.training.step import TrainState, init_state
from bwds.training.workdir import keep_config


@dataclass
class Run:
    """One training run in progress.

    Attributes:
        config: the run's, with the size of the vocabulary.
        corpus: its text.
        workdir: its folder.
        lm: its model.
        optimizer: its optimiser, wrapped by ``hold_fixed``.
        placement: how it is spread over devices.
        stop: signals that have come.
        kept: its checkpoints.
        log: its metrics and its progress.
        state: all that the next step depends on. Only this and ``step`` change.
        step: number of steps started; the state is that after the last of them.
    """

    config: Config
    corpus: Corpus
    workdir: Path
    lm: LanguageModel
    optimizer: Optimizer
    placement: Placement
    stop: StopSignals
    kept: Kept
    log: Log
    state: TrainState
    step: int


def begin(
    config: Config,
    corpus: Corpus,
    workdir: Path,
    stop: StopSignals,
    placement: Placement,
    *,
    profile: int,
    progress: bool,
    params: Params | None = None,
) -> Run:
    """A run at its newest checkpoint, or at its start if there is none; it then starts from ``params``, None: drawn.

    Raises:
        ValueError: the checkpoint was made with another text.
        OSError: the folder cannot be written to.
    """
    lm = language_model(config.model)
    optimizer = hold_fixed(make_optimizer(config.optim, config.train.steps), config)
    kept = Kept(workdir, identity(config.model, corpus.vocabulary) | text_identity(corpus))
    fresh = partial(init_state, lm, optimizer, batch_size=config.data.batch_size, placement=placement, params=params)
    state = kept.newest(fresh, jax.random.key(config.train.seed), placement)
    # A state that does not fit into memory raises here; reading a number of it would wait for ever.
    jax.block_until_ready(state)
    step = kept.saved or 0
    first_alone(partial(keep_config, workdir, config))
    # Later steps are done again, so their parameters must not count as the best yet.
    kept.best.forget_after(int(state.plateau.best_step))
    evaluated = int(state.plateau.evaluated_step)
    log = Log(config, workdir, step=step, evaluated=evaluated, profile=profile, shown=progress)
    if kept.saved is not None:
        log.note(f"Resuming from the checkpoint of step {step} in {workdir}.")
    return Run(config, corpus, workdir, lm, optimizer, placement, stop, kept, log, state, step)
