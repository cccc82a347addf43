"""Training: the loop around the step, its checkpoints and evaluations.

A run is a function of its configuration and its text. All that influences it is in the state, and the state is in every
checkpoint. So a run that was stopped, at any moment and in any way, ends with the parameters of a run that was not.
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

from bwds.card import model_card
from bwds.checks import require
from bwds.config import Config
from bwds.data import load_corpus
from bwds.data.batches import steps_per_epoch, train_batch
from bwds.files import RUN_MODEL, save_model
from bwds.filesystem import place, write_text
from bwds.output import tell
from bwds.tensors import can_write
from bwds.training.boundary import at_boundary, on_boundary
from bwds.training.devices import MeshConfig
from bwds.training.extend import extend
from bwds.training.identity import check_text, settled, text_sha256, without_place
from bwds.training.lock import LOCK_FILE, locked
from bwds.training.optim import step_sparsity, traced_sparsity
from bwds.training.processes import (
    check_same,
    check_shared,
    first_alone,
    first_then_all,
    from_first,
    is_first,
    process_max,
)
from bwds.training.run import Run, begin
from bwds.training.sharding import make_placement
from bwds.training.signals import InterruptedRunError, StopSignals
from bwds.training.start import start
from bwds.training.step import StepMetrics, evaluated_params, train_step
from bwds.training.summary import read_summary, summarise
from bwds.training.trained import facts
from bwds.training.workdir import SUMMARY_FILE, claim_workdir, keep_config


def train(
    config: Config,
    workdir: str | Path,
    *,
    start_from: str | Path | None = None,
    mesh: MeshConfig | None = None,
    profile: int = 0,
    progress: bool = True,
    command: str = "",
    extended: bool = False,
) -> dict[str, Any]:
    """Trains, or goes on training, the model of a configuration in a folder of its own.

    Example:
        ```python
        from bwds.training import train

        data = bwds.DataConfig(dataset="text", directory="texts", batch_size=2, sequence_length=8)
        model = bwds.ModelConfig(hidden_size=32, block_size=8, gate_activation="softplus")
        config = bwds.Config(model=model, data=data, train=bwds.TrainConfig(steps=4, eval_every=2))
        summary = train(config, "runs/own", progress=False)
        print(summary["validation_perplexity"])
        ```

    Args:
        config: what to train; the size of the vocabulary is taken from the data.
        workdir: folder of this run alone; ``~`` is the home folder. It gets config.json, vocabulary.txt, metrics.jsonl,
            TensorBoard events, checkpoints and, at the end, model.safetensors and summary.json.
        start_from: folder of a run whose best parameters training starts from. A model without gates is converted as by
            ``bwds.convert`` if ``config`` asks for norms. The parameters are evaluated before the first step.
        mesh: how to spread it over devices; None: one process puts all on its first device. A run may go on with
            another mesh.
        profile: number of steps that the first process traces, after its first three; the trace goes to plugins/profile
            in the folder.
        progress: show progress on stderr.
        command: written into the summary.
        extended: a finished run in the folder with fewer steps goes on; see ``bwds.training.extend``.

    Returns:
        What summary.json holds; for a finished run it is read from there.

    Raises:
        ValueError: the data are not usable, the folder holds another run, or the mesh does not fit.
        OSError: the folder cannot be written to, as on a full disk; the same call goes on from the last checkpoint.
        NonFiniteError: loss, gradient or parameters are not finite.
        InterruptedRunError: Ctrl-C, SIGTERM or their like; the state is saved, and the same call resumes.
    """
    workdir = place(workdir, "workdir")
    config = settled(config)
    corpus = first_then_all(partial(load_corpus, config.data))
    if progress and is_first():
        for note in corpus.notes:
            tell(note)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=len(corpus.vocabulary)))
    require(
        config.train.steps > 0 or start_from is not None,
        "steps is 0; it must be at least 1: without start_from there would be nothing to evaluate.",
    )
    params = None
    if start_from is not None:
        params, config = start(config, corpus, workdir, start_from)
    steps_per_epoch(corpus.train, batch_size=config.data.batch_size, sequence_length=config.data.sequence_length)
    # Processes that differ here would wait for each other for ever, or train on a mixture.
    check_same("The configuration", without_place(config).to_json().encode())
    check_same("The text", corpus.train, corpus.valid)
    check_same("The mesh", repr(mesh).encode())
    placement = make_placement(mesh, config.model, batch_size=config.data.batch_size)
    with contextlib.ExitStack() as held:
        first_alone(lambda: held.enter_context(locked(workdir)))
        check_shared(workdir / LOCK_FILE)
        if extended:
            first_alone(partial(extend, workdir, config, corpus.vocabulary, text_sha256(corpus)))
        first_alone(partial(claim_workdir, workdir, config, corpus.vocabulary))
        if (finished := from_first(read_summary(workdir))) is not None:
            check_text(finished, text_sha256(corpus), workdir)
            first_alone(partial(keep_config, workdir, config, finished=True))
            return finished
        with StopSignals(together=jax.process_count() > 1) as stop:
            run = begin(config, corpus, workdir, stop, placement, profile=profile, progress=progress, params=params)
            return to_the_end(run, command)


def to_the_end(run: Run, command: str) -> dict[str, Any]:
    """Trains, and writes and returns the summary."""
    try:
        try:
            run_steps(run)
        except BaseException:
            # A file that could not be written cannot be closed either; the first error is the one to raise.
            with contextlib.suppress(OSError):
                run.log.close()
            raise
        run.log.close()
        return finish(run, command)
    except OSError as error:
        raise run.kept.stopped(error, run.step) from error


def run_steps(run: Run) -> None:
    """Trains to the last step. Raises ``InterruptedRunError`` after a signal, ``NonFiniteError``."""
    first, unread = run.step, None
    while True:
        if at_boundary(run):
            if unread:
                read(run, *unread)
            unread = None
            run.log.speed.pause()
            on_boundary(run)
            # The first step of a process compiles, so its time does not count.
            if run.step > first:
                run.log.speed.go()
        if run.step == run.config.train.steps:
            return
        run.log.trace.before(run.step)
        with jax.profiler.StepTraceAnnotation("train", step_num=run.step):
            metrics = start_step(run)
        run.log.trace.after(run.step, metrics)
        # The metrics of the step before are read while the device works on this one.
        if unread:
            read(run, *unread)
        unread = (run.step, metrics, process_max(run.stop.noted))


def start_step(run: Run) -> StepMetrics:
    """Starts the next step and does not wait for it."""
    data, step = run.config.data, run.step
    shape = (data.batch_size, data.sequence_length)
    batch = partial(train_batch, run.corpus.train, step, batch_size=shape[0], sequence_length=shape[1])
    run.state, metrics = train_step(
        run.lm,
        run.optimizer,
        run.state,
        run.placement.spread_rows(shape, lambda rows: batch(rows=rows).inputs),
        run.placement.spread_rows(shape, lambda rows: batch(rows=rows).targets),
        np.bool_(batch(rows=slice(0)).new_epoch),
        traced_sparsity(run.config, step_sparsity(run.config, step)),
        run.placement,
    )
    run.step += 1
    return metrics


def read(run: Run, step: int, metrics: StepMetrics, signum: Any) -> None:
    """Waits for a step, checks it and shows it; ``signum``: the signal that any process got before it, 0 for none."""
    run.stop.hear(int(signum))
    values = {name: float(value) for name, value in jax.device_get(metrics)._asdict().items()}
    run.log.speed.step()
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(values[name]):
            raise run.kept.failure(f"The {name.replace('_', ' ')} is {values[name]} at step {step}")
    run.log.step(step, values)


def finish(run: Run, command: str) -> dict[str, Any]:
    """Writes the model into one file, and writes and returns the summary. Frees the state first."""
    # Only one tree is on the devices at a time, the others are on the host: two copies need not fit on a device.
    params = evaluated_params(run.state, run.placement)
    del run.state
    template = run.placement.template(lambda: params)
    last = run.placement.gathered(params)
    del params
    best, info = run.kept.best.restore(template)
    best = run.placement.gathered(best)

    def summary() -> tuple[int, dict[str, Any]]:
        there = jax.device_put(best, jax.local_devices()[0])
        found = summarise(run.config, run.workdir, last, (there, info), command=command)
        signum = run.stop.noted
        if not signum:
            if can_write():
                save_model(
                    run.workdir / RUN_MODEL,
                    there,
                    run.config.model,
                    vocabulary=run.corpus.vocabulary,
                    card=model_card(run.config.model, there, facts(run.config, info, run.workdir, "best")),
                )
            else:
                tell(f"warning: {RUN_MODEL} is not written, because safetensors is not installed.")
            write_text(run.workdir / SUMMARY_FILE, json.dumps(found, indent=2) + "\n")
        return signum, found

    # Signals that have come to any process since the last step are answered before the summary, which takes a while.
    run.stop.hear(int(process_max(run.stop.noted)))
    signum, found = (run.stop.counts, {}) if run.stop.counts else from_first(first_alone(summary))
    if signum:
        raise InterruptedRunError(signum, f"Stopped after the last step; all is saved in {run.workdir}.")
    return found
