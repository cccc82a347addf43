"""Runs cells of the comparison (quality/grid.py): training, test perplexity, cost, and time to decode a token.

    python benchmarks/reproduce.py --list ['ptb-lstm-small/*']
    python benchmarks/reproduce.py [--data-directory DIR] 'ptb-*-small/*/seed0'
    python benchmarks/reproduce.py --jobs 2 '*'
    python benchmarks/reproduce.py --epochs 15 --jobs 3 --output DIR 'ptb-lstm/dense/*' 'ptb-lstm/magnitude-0.5/*'

Patterns choose cells by name; * stands for anything. Cells run in the order of --list: those that decide most come
first, and methods take turns. With --jobs N, N cells run at a time, each in a process of its own; they share the cores,
and the memory of a GPU. Each cell trains in a folder of its own, runs/grid/NAME, and goes on there if it was stopped.
When it is finished, benchmarks/results/quality gets NAME.json: one line with all results, the curve of its evaluations
included. --output names another folder for both. With --epochs the cells are other, shorter ones: their learning rate
is halved every epoch over the last two fifths, for every preset. A cell that has a result is skipped and never
overwritten, also one whose training failed: that is a result too. To run a cell anew, remove its line and its folder.

Exit codes: 0 done, or stopped by SIGTERM with the state saved; 1 the training of a cell failed; 2 a mistake on the
command line, in the data or with a folder; 130 Ctrl-C with the state saved.
"""

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import ROOT
from benchmarks.command import a_folder, require_positive
from benchmarks.environment import environment
from benchmarks.lines import fields
from benchmarks.quality.cell_lines import read_line, result_path
from benchmarks.quality.grid import Cell, cells, matching, shortened
from benchmarks.quality.stopwatch import Stopwatch
from bwds import PRESETS, cost, decode_params, language_model
from bwds.config import Config, ModelConfig
from bwds.data import load_corpus
from bwds.decode_speed import decoding
from bwds.filesystem import temporary_name, write_text
from bwds.linear import Params
from bwds.timing import time_in_turns
from bwds.training import NonFiniteError, train
from bwds.training.checkpoint import last_checkpoints
from bwds.training.devices import MeshConfig
from bwds.training.evaluation import evaluate
from bwds.training.metrics import METRICS_FILE, perplexity, read_metrics
from bwds.training.signals import InterruptedRunError
from bwds.training.trained import load_params
from bwds.training.workdir import SUMMARY_FILE, read_config

SCRIPT = ROOT / "benchmarks" / "reproduce.py"
RUNS = Path("runs/grid")
RESULTS = ROOT / "benchmarks" / "results" / "quality"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks/reproduce.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cells", nargs="*", metavar="PATTERN", help="names of cells; '*' is all of them")
    parser.add_argument("--list", action="store_true", help="show the cells and their state; run nothing")
    parser.add_argument("--data-directory", help="folder of the text files; otherwise they are downloaded")
    parser.add_argument("--jobs", type=int, metavar="N", help="run N cells side by side, each with its share of cores")
    parser.add_argument("--epochs", type=int, metavar="N", help="run the cells with so many epochs instead")
    parser.add_argument("--epoch-steps", type=int, metavar="N", help="steps of these epochs; default: the whole text")
    parser.add_argument("--output", type=a_folder, metavar="DIR", help="folder for runs/ and quality/")
    args = parser.parse_args(arguments)
    require_positive(args, "jobs", "epochs", "epoch_steps")
    runs, results = (RUNS, RESULTS) if args.output is None else (args.output / "runs", args.output / "quality")
    named = matching(args.cells) if args.cells else cells()
    if args.epoch_steps is not None and args.epochs is None:
        parser.error("--epoch-steps is the length of --epochs, which is not given")
    chosen = named if args.epochs is None else [shortened(cell, args.epochs, args.epoch_steps) for cell in named]
    if args.list:
        for cell in chosen:
            print(f"{state(cell, runs, results):<24}  {cell.name}")
        return
    if not args.cells:
        parser.error("no cell is named; --list shows them, and '*' runs all")
    if args.jobs is not None:
        waiting = [name.name for name, cell in zip(named, chosen, strict=True) if read_line(cell, results) is None]
        options = {name: getattr(args, name) for name in ("data_directory", "epochs", "epoch_steps", "output")}
        passed = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
        side_by_side(waiting, args.jobs, passed)
        return
    failed = []
    for cell in chosen:
        if read_line(cell, results) is not None:
            print(f"{state(cell, runs, results):<24}  {cell.name}: skipped", flush=True)
            continue
        print(f"{cell.command(str(runs / cell.name))}", flush=True)
        try:
            result = run_cell(cell, runs, results, directory=args.data_directory)
        except InterruptedRunError as stopped:
            print(f"{stopped}\nThe same command goes on from there.", flush=True)
            sys.exit(stopped.exit_code)
        print(f"{state(cell, runs, results):<24}  {cell.name}", flush=True)
        failed += [cell.name] * ("failed" in result)
        # The next cell has no use for the programs of this one.
        jax.clear_caches()
    if failed:
        print(f"error: training failed in {', '.join(failed)}", file=sys.stderr)
        sys.exit(1)


def side_by_side(names: list[str], jobs: int, options: list[str]) -> None:
    """Runs cells in processes of their own, ``jobs`` at a time, each on its share of the cores where it can be pinned.

    Raises ``SystemExit``: exit code 1 if a cell ended with an error, after all have had their turn; 0 after SIGTERM.
    """
    own = sorted(os.sched_getaffinity(0)) if shutil.which("taskset") else []
    free = [own[i::jobs] or own[i % len(own) :][:1] if own else own for i in range(jobs)]
    # By default one JAX process takes three quarters of a GPU's memory.
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / jobs:.2f}"} | os.environ
    running: dict[subprocess.Popen[bytes], tuple[str, list[int]]] = {}
    failed, waiting = [], list(names)
    stopped = threading.Event()
    # Passes a scheduler's SIGTERM on to the cells, which save their state. With Ctrl-C the terminal does so itself.
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        while (waiting or running) and not stopped.is_set():
            while waiting and free:
                name, share = waiting.pop(0), free.pop()
                pin = ["taskset", "-c", ",".join(map(str, share))] if share else []
                command = [*pin, sys.executable, str(SCRIPT), *options, name]
                running[subprocess.Popen(command, env=environment)] = name, share
            time.sleep(0.5)
            for process in [p for p in running if p.poll() is not None]:
                name, share = running.pop(process)
                free.append(share)
                failed += [f"{name} (exit code {process.returncode})"] * (process.returncode != 0)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
    if failed:
        print(f"error: these cells ended with an error: {', '.join(failed)}", file=sys.stderr)
    if failed or stopped.is_set():
        sys.exit(0 if stopped.is_set() else 1)


def state(cell: Cell, runs: Path, results: Path) -> str:
    """done, failed, missing, or how far it is; in words."""
    result, workdir = read_line(cell, results), runs / cell.name
    if result is not None:
        return "failed" if "failed" in result else f"done (test {result['test_perplexity']:.2f})"
    if (workdir / SUMMARY_FILE).exists():
        return "trained, not evaluated"
    if (workdir / "checkpoints" / "last").is_dir():
        steps = last_checkpoints(workdir, read_only=True).steps
        return f"at step {max(steps, default=0)} of {cell.config().train.steps}"
    return "missing"


def run_cell(cell: Cell, runs: Path, results: Path, *, directory: str | None = None) -> dict[str, Any]:
    """Trains a cell, or goes on, evaluates it and writes its line.

    Args:
        cell: which.
        runs: the cell's own folder is in here.
        results: folder of the results.
        directory: of the text files; None: they are downloaded.

    Returns:
        The line; with "failed" instead of figures if a loss was not finite.

    Raises:
        ValueError: the data are not usable, or the cell's folder holds another run.
        InterruptedRunError: SIGTERM or Ctrl-C; the state is saved, and the same call goes on.
        FileExistsError: there is a result already.
    """
    workdir, config, command = runs / cell.name, cell.config(directory), cell.command(str(runs / cell.name))
    result: dict[str, Any] = {"cell": cell.name, "preset": cell.preset, "variant": cell.variant, "seed": cell.seed}
    result |= {"dataset": config.data.dataset, "command": command, "options": cell.options}
    # Taken before training, because files may have changed when a long run ends.
    found = environment()
    del found["command"]
    watch = Stopwatch(workdir.with_name(f"{workdir.name}.processes.json"), found["revision"], found["modified"])
    try:
        with watch:
            summary = train(config, workdir, mesh=MeshConfig(data=cell.devices), command=command)
    except NonFiniteError as error:
        # The first sentence says what happened; the others give advice and name folders.
        result |= {"failed": str(error).split(". ")[0]}
    else:
        result |= figures(read_config(workdir), PRESETS[cell.preset].model, workdir, summary)
    result |= {**course(workdir), **found, **watch.summary()}
    keep(result_path(cell, results), result)
    return result


def course(workdir: Path) -> dict[str, Any]:
    """How a run went: validation perplexity by step, and the median, 95% quantile and largest gradient norm logged."""
    lines = read_metrics(workdir / METRICS_FILE)
    curve = [[line["step"], round(line["perplexity"], 3)] for line in lines if line["split"] == "valid"]
    norms = [line["gradient_norm"] for line in lines if line["split"] == "train"]
    quantiles = [float(f"{q:.4g}") for q in np.quantile(norms, (0.5, 0.95, 1.0))] if norms else None
    return {"validation_curve": curve, "gradient_norm_quantiles": quantiles}


def figures(config: Config, preset: ModelConfig, workdir: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """Results of a finished run: its cost, and the test perplexity at the best validation loss.

    Args:
        config: the run's, with the vocabulary of its data.
        preset: the model its cell started from.
        workdir: the run's folder.
        summary: what training ended with.
    """
    params, step = load_params(config, workdir, "best")
    corpus = load_corpus(config.data)
    lm = language_model(config.model)
    test = evaluate(lm, params, corpus.test, config.data, corpus.vocabulary.eos_id)
    reference = dataclasses.replace(preset, method="dense", vocab_size=config.model.vocab_size)
    counted = cost(config.model)
    return {
        "steps": config.train.steps,
        "best_step": step,
        "validation_perplexity": summary["validation_perplexity"],
        "test_perplexity": perplexity(test.loss),
        "test_tokens": test.tokens,
        "realised_density": float(test.density),
        "hidden_size": config.model.hidden_size,
        "parameters": summary["parameters"],
        "multiply_adds": {
            "gates": counted.gates,
            "blocks": counted.blocks,
            "softmax": counted.softmax,
            "total": counted.total,
            "dense": counted.dense,
            "preset_dense": cost(reference).total,
        },
        "relative_cost": counted.relative,
        "bytes_read": counted.bytes_read,
        "decode": decode_times(config.model, reference, params),
        "train_tokens_per_second": summary["tokens_per_second"],
        "parameters_sha256": summary["parameters_sha256"],
        "versions": summary["versions"],
    }


def decode_times(config: ModelConfig, reference: ModelConfig, params: Params, *, steps: int = 32) -> dict[str, Any]:
    """Microseconds per token of greedy decoding at batch 1, in turns with the dense model of the preset's size.

    Args:
        config: the model.
        reference: the dense model; its parameters are random, because speed does not depend on them.
        params: of the model.
        steps: tokens of one call.
    """
    calls = {"model": decoding(config, decode_params(params, config), steps=steps)}
    if config != reference:
        drawn = jax.jit(language_model(reference).init)(jax.random.key(0))
        calls["dense"] = decoding(reference, decode_params(drawn, reference), steps=steps)
    times = time_in_turns(calls, least=0.0)
    return fields({name: type(t)(q / steps for q in t) for name, t in times.items()})


def keep(path: Path, result: dict[str, Any]) -> None:
    """Writes the line, whole or not at all. Raises ``FileExistsError`` if there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    write_text(temporary, json.dumps(result) + "\n")
    try:
        # Unlike a rename, a link never replaces what another process wrote in the meantime.
        os.link(temporary, path)
    except FileExistsError as error:
        raise FileExistsError(f"{path} is there already; remove it if the cell is to be run anew.") from error
    finally:
        temporary.unlink()
