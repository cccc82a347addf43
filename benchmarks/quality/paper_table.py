"""The paper's comparison in a given time on one accelerator: dense, dynamic and magnitude-pruned, side by side.

    python -m benchmarks.quality.paper_table --minutes M --output DIR [--data-directory DIR] [--preset ptb-lstm]

One device trains three models at a time, which fills the gaps between launches. At first each model trains a few
steps. That compiles the programs and tells how many epochs fit into the time. Schedules are then set to end with the
last epoch, and reproduce.py runs the cells. Further seeds follow while there is time for all of their epochs. Every
finished cell adds a line to DIR/lines.jsonl; if the time ends before a cell is finished, the cell adds its curve.
Checkpoints are in DIR/runs. To begin anew, remove DIR.
"""

import argparse
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.command import a_folder, require_positive, script
from benchmarks.quality.cell_lines import read_line
from benchmarks.quality.grid import SEEDS, Cell, matching, shortened
from bwds.training.metrics import METRICS_FILE, read_metrics

VARIANTS = ("dense", "dynamic-softplus-0.5", "magnitude-0.5")
PROBED = 60
"""Steps of the first, short runs."""
EVALUATION = 0.25
"""Time of an evaluation, at most, as a share of an epoch: it reads a twelfth of the text, in smaller batches."""
MOST_EPOCHS = 40
"""Epochs of the paper."""


def side_by_side(commands: list[list[str]]) -> None:
    """Runs commands at the same time, each with its share of the device's memory.

    If one of them fails, this process ends too.
    """
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / len(commands):.2f}"} | os.environ
    running = [subprocess.Popen(command, cwd=ROOT, env=environment) for command in commands]
    try:
        codes = [process.wait() for process in running]
    finally:
        for process in running:
            process.terminate()
    if any(codes):
        sys.exit(f"error: the exit codes of {len(commands)} runs are {codes}")


def probe(cells: list[Cell], folder: Path, directory: str | None) -> tuple[float, float]:
    """(seconds of one step of all cells, seconds that a process takes in addition to its steps)."""
    commands = []
    for cell in cells:
        workdir = folder / cell.variant
        changed = {"train.steps": PROBED, "train.eval_every": PROBED, "train.checkpoint_every": PROBED}
        command = Cell(cell.preset, cell.variant, cell.seed, cell.options | changed).command(str(workdir))
        text = [] if directory is None else [f"--data.directory={directory}"]
        commands.append([sys.executable, *shlex.split(command)[1:], *text])
    start = time.monotonic()
    side_by_side(commands)
    taken = time.monotonic() - start
    tokens = cells[0].config(directory).data.batch_size * cells[0].config(directory).data.sequence_length
    step = one_step([folder / cell.variant / METRICS_FILE for cell in cells], tokens)
    return step, max(0.0, taken - step * PROBED)


def one_step(logs: list[Path], tokens: int) -> float:
    """Seconds in which one device does a step of every run that wrote a log.

    Processes that share a device take turns, so their times add up. The speed of a run is the best that it logged,
    which was while most of the others were still compiling or had ended.
    """
    speeds = [max((line.get("tokens_per_second") or 0.0 for line in read_metrics(log)), default=0.0) for log in logs]
    if not all(speeds):
        sys.exit(f"error: no speed is logged in {', '.join(map(str, logs))}")
    return sum(tokens / speed for speed in speeds)


def write_lines(cells: list[Cell], output: Path, written: set[str]) -> None:
    """Appends the lines of finished cells that are not there yet."""
    for cell in cells:
        line = read_line(cell, output / "quality")
        if line is not None and cell.name not in written:
            written.add(cell.name)
            with (output / "lines.jsonl").open("a") as file:
                file.write(json.dumps({"benchmark": "quality", **line}) + "\n")


def write_curves(cells: list[Cell], output: Path, written: set[str]) -> None:
    """Appends the curves of the cells that did not finish."""
    for cell in cells:
        lines = read_metrics(output / "runs" / cell.name / METRICS_FILE)
        curve = [[line["step"], round(line["perplexity"], 3)] for line in lines if line["split"] == "valid"]
        if curve and cell.name not in written:
            with (output / "lines.jsonl").open("a") as file:
                file.write(json.dumps({"benchmark": "curve", "cell": cell.name, "validation_curve": curve}) + "\n")


def cells_written(output: Path) -> set[str]:
    """Names of the cells that have a line of results already."""
    lines = output / "lines.jsonl"
    known = map(json.loads, lines.read_text().splitlines()) if lines.exists() else ()
    return {line["cell"] for line in known if line["benchmark"] == "quality"}


def train_until(
    end: float, named: list[Cell], trained: list[Cell], output: Path, written: set[str], **options: Any
) -> int:
    """Trains cells with reproduce.py, until ``time.monotonic()`` is ``end``, and writes down what they come to.

    Args:
        end: when to stop. What is not finished then leaves its curve.
        named: the cells of the grid.
        trained: the same, as the options change them.
        output: folder of all files.
        written: names of the cells that have their line; it grows.
        options: of reproduce.py; None: not given.

    Returns:
        The exit code: 0 also if the time was up.
    """
    passed = [f"--{name}={value}" for name, value in options.items() if value is not None]
    command = [sys.executable, str(ROOT / "benchmarks/reproduce.py"), *passed, f"--output={output}"]
    process = subprocess.Popen([*command, *(cell.name for cell in named)], cwd=ROOT)
    try:
        while process.poll() is None and time.monotonic() < end:
            time.sleep(1)
            write_lines(trained, output, written)
    finally:
        process.terminate()
        code = process.wait()
        write_lines(trained, output, written)
        write_curves(trained, output, written)
    return code


def run(args: argparse.Namespace) -> None:
    """Trains as many seeds as there is time for."""
    end = time.monotonic() + 60 * args.minutes
    args.output.mkdir(parents=True, exist_ok=True)
    first = matching([f"{args.preset}/{variant}/seed{SEEDS[0]}" for variant in VARIANTS])
    plan = args.output / "plan.json"
    if plan.exists():
        epochs, epoch, beside = json.loads(plan.read_text())
    else:
        step, beside = probe(first, args.output / "probe", args.data_directory)
        whole = first[0].config().train.eval_every
        epoch = step * ((args.epoch_steps or whole) + EVALUATION * whole)
        epochs = min(MOST_EPOCHS, int((end - time.monotonic() - beside) / (1.05 * epoch)))
        print(
            f"An epoch takes {epoch:.1f} s side by side with its evaluation, the rest {beside:.0f} s: {epochs} epochs.",
            flush=True,
        )
        if epochs < 1:
            sys.exit(f"error: no epoch of {epoch:.0f} s fits into {args.minutes:g} minutes")
        plan.write_text(json.dumps([epochs, epoch, beside]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    written = cells_written(args.output)
    for seed in SEEDS:
        cells = matching([f"{args.preset}/{variant}/seed{seed}" for variant in VARIANTS])
        short = [shortened(cell, epochs, args.epoch_steps) for cell in cells]
        needed = epochs * epoch + beside
        if seed != SEEDS[0] and time.monotonic() + needed > end:
            print(f"seed {seed}: no time for {needed:.0f} s more", flush=True)
            break
        options = {"epochs": epochs, "epoch-steps": args.epoch_steps, "data-directory": args.data_directory}
        code = train_until(end, cells, short, args.output, written, jobs=len(cells), **options)
        if code:
            sys.exit(f"error: training of seed {seed} ended with status {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="time for all of it")
    parser.add_argument("--output", type=a_folder, required=True, metavar="DIR")
    parser.add_argument("--data-directory", help="folder of the text files; otherwise they are downloaded")
    parser.add_argument("--preset", default="ptb-lstm", choices=["ptb-lstm", "ptb-qrnn", "ptb-lstm-small"])
    parser.add_argument(
        "--epoch-steps", type=int, metavar="N", help="steps of an epoch, to rehearse; default: the text's"
    )
    args = parser.parse_args()
    require_positive(args, "epoch_steps")
    if not 0 < args.minutes < math.inf:
        parser.error(f"--minutes is {args.minutes:g}; it must be above 0 and finite.")
    # Absolute, because the runs start in another folder.
    args.output = args.output.resolve()
    args.data_directory = args.data_directory and str(Path(args.data_directory).resolve())
    run(args)


if __name__ == "__main__":
    script(main)
