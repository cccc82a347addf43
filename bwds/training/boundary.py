"""Between two steps: evaluations, checkpoints, and the end that a signal asks for."""

import math
from collections.abc import Callable
from typing import Any

from bwds.training.evaluation import evaluate
from bwds.training.metrics import perplexity
from bwds.training.optim import after_evaluation, sparsity_at, traced_sparsity
from bwds.training.processes import process_max
from bwds.training.run import Run
from bwds.training.signals import InterruptedRunError, StopSignals
from bwds.training.step import evaluated_params


def at_boundary(run: Run) -> bool:
    """Whether there is an evaluation, a checkpoint or a stop to do before the next step."""
    train = run.config.train
    return _due(run, train.eval_every) or _due(run, train.checkpoint_every) or run.stop.requested


def _due(run: Run, every: int) -> bool:
    return run.step >= _first(run) and (run.step == run.config.train.steps or run.step % every == 0)


def _first(run: Run) -> int:
    """The first step to evaluate and save after: 0 for parameters of another run, 1 for drawn ones."""
    return 1 if run.config.train.start_sha256 is None else 0


def on_boundary(run: Run) -> None:
    """Evaluates, saves or stops, whatever is due.

    Raises:
        InterruptedRunError: a signal has come; the state is saved.
        NonFiniteError: the validation loss or the parameters are not finite.
    """
    train = run.config.train
    try:
        run.stop.check()
        if _due(run, train.eval_every) and int(run.state.plateau.evaluated_step) < run.step:
            _validate(run)
    except InterruptedRunError as interrupted:
        run.kept.save(run.step, run.state)
        message = f"Stopped after step {run.step} of {train.steps}; its state is saved in {run.workdir}."
        raise InterruptedRunError(interrupted.signum, message) from None
    # With new best parameters the state is saved too. Each kept state then names parameters that are still kept.
    if _due(run, train.checkpoint_every) or (run.step >= _first(run) and int(run.state.plateau.best_step) == run.step):
        run.kept.save(run.step, run.state)


def _validate(run: Run) -> None:
    """Evaluates on the validation split, applies the plateau rule and keeps the parameters if they are the best.

    While a schedule still raises the sparsity, losses cannot be compared: they are only written down.
    """
    config, step = run.config, run.step
    params = evaluated_params(run.state, run.placement)
    found = evaluate(
        run.lm,
        params,
        run.corpus.valid,
        config.data,
        run.corpus.vocabulary.eos_id,
        sparsity=traced_sparsity(config, sparsity_at(config, step)),
        after_batch=_giving_up(run.stop),
        placement=run.placement,
    )
    loss = found.loss
    if not math.isfinite(loss):
        raise run.kept.failure(f"The validation loss is {loss} after step {step}")
    run.log.evaluation(step, found)
    counts = sparsity_at(config, step) == sparsity_at(config, config.train.steps)
    factor = config.optim.plateau_factor if config.optim.name == "sgd" else 1.0
    plateau = after_evaluation(run.state.plateau, loss, step=step, factor=factor, counts=counts)
    is_best = int(plateau.best_step) == step
    if is_best:
        run.kept.save_best(step, params, loss=loss, density=found.density)
    run.state = run.state._replace(plateau=run.placement.put(plateau))
    run.log.note(f"step {step}: validation perplexity {perplexity(loss):.2f}{', the best' * is_best}")


def _giving_up(stop: StopSignals) -> Callable[[], None]:
    """A function that gives up an evaluation after a signal to any process.

    It reads the answer of the processes one batch late, so it never waits for the newest batch.
    """
    asked: Any = None

    def after_batch() -> None:
        nonlocal asked
        if asked is not None:
            stop.hear(int(asked))
        asked = process_max(stop.noted)
        stop.check()

    return after_batch
