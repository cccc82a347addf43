"""Training: the loop around the step, its checkpoints and evaluations.

A run is a function of its configuration and its text. All that influences it is in the state, and the state is in every
checkpoint, so a run that was stopped, at any moment and in any way, ends with the parameters of one that was not.
"""

import contextlib
import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bwds.config import Config
from bwds.data import Corpus, load_corpus
from bwds.data.batches import steps_per_epoch, train_batch
from bwds.files import place, write_text
from bwds.model import language_model
from bwds.training.checkpoint import best_checkpoints, last_checkpoints
from bwds.training.devices import MeshConfig
from bwds.training.evaluation import evaluate
from bwds.training.identity import check_text, identity, settled, text_identity, text_sha256, without_place
from bwds.training.lock import LOCK_FILE, locked
from bwds.training.metrics import MetricsWriter, Progress, Speed, perplexity
from bwds.training.optim import after_evaluation, make_optimizer, sparsity_at, traced_sparsity
from bwds.training.processes import check_same, check_shared, first_alone, first_then_all, from_first, is_first, largest
from bwds.training.profiling import StepTrace
from bwds.training.pruning import constrain
from bwds.training.sharding import Placement, make_placement
from bwds.training.signals import InterruptedRunError, StopSignals
from bwds.training.step import (
    NonFiniteError,
    StepMetrics,
    TrainState,
    all_finite,
    evaluated_params,
    init_state,
    train_step,
)
from bwds.training.summary import read_summary, summarise
from bwds.training.workdir import SUMMARY_FILE, claim_workdir, keep_config


class _Run:
    """One call of ``train``: what the loop needs besides the state."""

    def __init__(
        self,
        config: Config,
        corpus: Corpus,
        workdir: Path,
        stop: StopSignals,
        placement: Placement,
        *,
        profile: int,
        progress: bool,
    ) -> None:
        self.config, self.corpus, self.workdir, self.stop = config, corpus, workdir, stop
        self.placement = placement
        self.lm = language_model(config.model)
        self.identity = identity(config.model, corpus.vocabulary) | text_identity(corpus)
        self.optimizer = constrain(make_optimizer(config.optim, config.train.steps), config)
        self.last, self.best = last_checkpoints(workdir), best_checkpoints(workdir)
        self.saved: int | None = None
        # Placed the same way whether new, restored or changed by an evaluation: jit compiles the step once.
        fresh = partial(init_state, self.lm, self.optimizer, batch_size=config.data.batch_size, placement=placement)
        key = jax.random.key(config.train.seed)
        if self.last.steps:
            state, info = self.last.restore(placement.template(fresh, key))
            check_text(info, self.identity["text_sha256"], workdir)
            self.saved = info["step"]
        else:
            state = fresh(key)
        self.state: TrainState = jax.device_put(state, placement.shardings(state))
        self.step = self.saved or 0
        first_alone(partial(keep_config, workdir, config))
        # What came after is done again, and not to be taken for the best before it is.
        self.best.forget_after(int(self.state.plateau.best_step))
        valid = int(self.state.plateau.evaluated_step)
        self.metrics: MetricsWriter | None = first_alone(partial(MetricsWriter, workdir, train=self.step, valid=valid))
        self.trace = StepTrace(workdir, start=self.step, steps=profile if is_first() else 0)
        self.progress = Progress(total=config.train.steps, initial=self.step, shown=progress and is_first())
        self.speed = Speed(config.data.batch_size * config.data.sequence_length)
        self.tokens_per_second: float | None = None
        self.asked: Any = None
        if self.saved is not None:
            self.progress.note(f"Resuming from the checkpoint of step {self.step} in {workdir}.")

    def loop(self) -> None:
        """Trains to the end. Raises ``InterruptedRunError`` after a signal, ``NonFiniteError``."""
        config, pending = self.config.train, None
        first = self.step
        while True:
            last = self.step == config.steps
            evaluation_due = self.step > 0 and (last or self.step % config.eval_every == 0)
            checkpoint_due = self.step > 0 and (last or self.step % config.checkpoint_every == 0)
            if evaluation_due or checkpoint_due or self.stop.requested:
                if pending:
                    self.report(*pending)
                pending = None
                self.speed.pause()
                try:
                    self.stop.check()
                    if evaluation_due and int(self.state.plateau.evaluated_step) < self.step:
                        self.validate()
                except InterruptedRunError as interrupted:
                    self.save()
                    message = f"Stopped after step {self.step} of {config.steps}; its state is saved in {self.workdir}."
                    raise InterruptedRunError(interrupted.signum, message) from None
                # The state too where it is the best: not more bests than are kept may come after the one it names.
                if checkpoint_due or (self.step > 0 and int(self.state.plateau.best_step) == self.step):
                    self.save()
                # The first step of a process compiles, which is not counted.
                if self.step > first:
                    self.speed.go()
            if last:
                return
            self.trace.before(self.step)
            with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                metrics = self.dispatch()
            self.trace.after(self.step, metrics)
            # The metrics of the step before are read while the device works on this one.
            if pending:
                self.report(*pending)
            pending = (self.step, metrics, largest(self.stop.noted))

    def to_the_end(self, command: str) -> dict[str, Any]:
        """Trains, and writes and returns the summary."""
        try:
            try:
                self.loop()
            except BaseException:
                # What could not be written cannot be closed either, and the first error is the one to tell.
                with contextlib.suppress(OSError):
                    self.close()
                raise
            self.close()
            return self.summary(command)
        except OSError as error:
            start = "it starts anew" if self.saved is None else f"it goes on from the checkpoint of step {self.saved}"
            raise OSError(
                f"{error} Training stopped after step {self.step}. Make room, or see to the folder, and give the same "
                f"command again: {start}."
            ) from error

    def summary(self, command: str) -> dict[str, Any]:
        """Writes and returns the summary. The state is given up."""
        # One tree at a time, and kept on the host: beside the state, copies of the parameters need not fit on a device.
        params = evaluated_params(self.state, self.placement)
        del self.state
        template = self.placement.template(lambda: params)
        last = self.placement.gathered(params)
        del params
        best, info = self.best.restore(template)
        best = self.placement.gathered(best)

        def summary() -> dict[str, Any] | int:
            there = jax.device_put(best, jax.local_devices()[0])
            found = summarise(self.config, self.workdir, last, (there, info), command=command)
            if not (signum := self.stop.noted):
                write_text(self.workdir / SUMMARY_FILE, json.dumps(found, indent=2) + "\n")
            return signum or found

        # What has come to any process since the last step: the summary takes a while.
        self.stop.hear(int(largest(self.stop.noted)))
        found = self.stop.counts or from_first(first_alone(summary))
        if isinstance(found, int):
            raise InterruptedRunError(found, f"Stopped after the last step; all is saved in {self.workdir}.")
        return found

    def dispatch(self) -> StepMetrics:
        """Starts the next step and does not wait for it."""
        data, step = self.config.data, self.step
        shape = (data.batch_size, data.sequence_length)
        batch = partial(train_batch, self.corpus.train, step, batch_size=shape[0], sequence_length=shape[1])
        self.state, metrics = train_step(
            self.lm,
            self.optimizer,
            self.state,
            self.placement.spread_rows(shape, lambda rows: batch(rows=rows).inputs),
            self.placement.spread_rows(shape, lambda rows: batch(rows=rows).targets),
            np.bool_(batch(rows=slice(0)).new_epoch),
            traced_sparsity(self.config, step),
            self.placement,
        )
        self.step += 1
        return metrics

    def report(self, step: int, metrics: StepMetrics, signum: Any) -> None:
        """Waits for a step, checks it and shows it. ``signum`` is the signal that some process got before it."""
        self.stop.hear(int(signum))
        values = {name: float(value) for name, value in jax.device_get(metrics)._asdict().items()}
        self.speed.step()
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(values[name]):
                self.fail(f"The {name.replace('_', ' ')} is {values[name]} at step {step}")
        if step % self.config.train.log_every == 0 or step == self.config.train.steps:
            self.tokens_per_second = self.speed.take()
            self.write(
                step=step,
                split="train",
                perplexity=perplexity(values["loss"]),
                **values,
                sparsity=sparsity_at(self.config, step - 1),
                tokens_per_second=self.tokens_per_second,
            )
        self.progress.update(step=step, loss=values["loss"], tokens_per_second=self.tokens_per_second)

    def validate(self) -> None:
        """Evaluates on the validation split, applies the plateau rule and keeps the parameters if they are the best.

        While a schedule still raises the sparsity, losses do not compare: they are written down only.
        """
        config, step = self.config, self.step
        params = evaluated_params(self.state, self.placement)
        loss, density, _ = evaluate(
            self.lm,
            params,
            self.corpus.valid,
            config.data,
            self.corpus.vocabulary.eos_id,
            sparsity=traced_sparsity(config, step),
            after_batch=self.after_batch,
            placement=self.placement,
        )
        if not math.isfinite(loss):
            self.fail(f"The validation loss is {loss} after step {step}")
        sparsity = sparsity_at(config, step)
        self.write(step=step, split="valid", loss=loss, perplexity=perplexity(loss), density=density, sparsity=sparsity)
        counts = sparsity == sparsity_at(config, config.train.steps)
        factor = config.optim.plateau_factor if config.optim.name == "sgd" else 1.0
        plateau = after_evaluation(self.state.plateau, loss, step=step, factor=factor, counts=counts)
        is_best = int(plateau.best_step) == step
        if is_best:
            self.best.save(step, params, loss=loss, density=density, **self.identity)
        self.state = self.state._replace(plateau=self.placement.put(plateau))
        self.progress.note(f"step {step}: validation perplexity {perplexity(loss):.2f}{', the best' * is_best}")

    def after_batch(self) -> None:
        """Gives up an evaluation after a signal to any process, one batch late: so the newest is not waited for."""
        if self.asked is not None:
            self.stop.hear(int(self.asked))
        self.asked = largest(self.stop.noted)
        self.stop.check()

    def save(self) -> None:
        """Writes the state to ``last``, unless that is where it came from. It is never one that is not finite."""
        if self.saved == self.step:
            return
        if not all_finite((self.state.params, self.state.opt_state, self.state.carry)):
            self.fail(f"Parameters are not finite after step {self.step}")
        self.last.save(self.step, self.state, **self.identity)
        self.saved = self.step

    def fail(self, what: str) -> None:
        """Raises ``NonFiniteError``."""
        good = "There is no checkpoint yet" if self.saved is None else f"The last good checkpoint is step {self.saved}"
        raise NonFiniteError(
            f"{what}. {good} in {self.last.directory}. Training stops here; try a smaller --optim.learning-rate or "
            "--optim.clip-norm, or --model.gate-activation softplus if gates are linear, in another --workdir."
        )

    def write(self, **values: Any) -> None:
        """A line in the metrics, from the first process."""
        if self.metrics is not None:
            self.metrics.write(**values)

    def close(self) -> None:
        """Closes the files."""
        self.trace.close()
        if self.metrics is not None:
            self.metrics.close()
        self.progress.close()


def train(
    config: Config,
    workdir: Path,
    *,
    mesh: MeshConfig | None = None,
    profile: int = 0,
    progress: bool = True,
    command: str = "",
) -> dict[str, Any]:
    """Trains, or goes on training, the model of a configuration in a folder of its own.

    Args:
        config: what to train; the size of the vocabulary is taken from the data.
        workdir: folder of this run alone, ``~`` is the home folder. It gets config.json, vocabulary.txt, metrics.jsonl,
            TensorBoard events, checkpoints and, at the end, summary.json.
        mesh: how to spread it over devices; None: all on the first one. A run may go on with another mesh.
        profile: steps that the first process records a trace of, after three; it goes to plugins/profile in the folder.
        progress: show progress on stderr.
        command: noted in the summary.

    Returns:
        What summary.json holds; for a finished run it is read from there.

    Raises:
        ValueError: the data are not usable, the folder holds another run, or the mesh does not fit.
        OSError: the folder cannot be written to, as on a full disk; the same call goes on from the last checkpoint.
        NonFiniteError: loss, gradient or parameters are not finite.
        InterruptedRunError: Ctrl-C, SIGTERM or their like; the state is saved, and the same call resumes.
    """
    workdir = place(workdir, "--workdir")
    config = settled(config)
    corpus = first_then_all(partial(load_corpus, config.data))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=len(corpus.vocabulary)))
    steps_per_epoch(corpus.train, batch_size=config.data.batch_size, sequence_length=config.data.sequence_length)
    # Processes that differ here would wait for each other for ever, or train on a mixture.
    check_same("The configuration", without_place(config).to_json().encode())
    check_same("The text", corpus.train, corpus.valid)
    check_same("The mesh", repr(mesh).encode())
    placement = make_placement(mesh, config.model, batch_size=config.data.batch_size)
    with contextlib.ExitStack() as held:
        first_alone(lambda: held.enter_context(locked(workdir)))
        check_shared(workdir / LOCK_FILE)
        first_alone(partial(claim_workdir, workdir, config, corpus.vocabulary))
        if (finished := from_first(read_summary(workdir))) is not None:
            check_text(finished, text_sha256(corpus), workdir)
            first_alone(partial(keep_config, workdir, config, finished=True))
            return finished
        with StopSignals(together=jax.process_count() > 1) as stop:
            run = _Run(config, corpus, workdir, stop, placement, profile=profile, progress=progress)
            return run.to_the_end(command)
