"""The comparison of small models in a given time on one accelerator: many cells of the grid side by side.

    python -m benchmarks.quality.small_table --minutes M --output DIR [--data-directory DIR] [--jobs 8] [PATTERN ...]

A step of a small model is hundreds of launches of tiny kernels, so one device has room for many models at a time. The
cells run in the order of the grid; those that have a committed line are left out. Every finished cell adds a line to
DIR/lines.jsonl, and its file to DIR/quality, from where it can be copied to benchmarks/results/quality. If the time
ends before a cell is finished, the cell adds its curve, and goes on in DIR/runs when the command is given again.
"""

import argparse
import math
import signal
import sys
import time
from pathlib import Path

from benchmarks.command import a_folder, require_positive, script
from benchmarks.quality.cell_lines import read_line
from benchmarks.quality.grid import matching, shortened
from benchmarks.quality.paper_table import cells_written, train_until
from benchmarks.quality.reproduce import RESULTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="PATTERN", default=["ptb-*-small/*"], help="names of cells")
    parser.add_argument("--minutes", type=float, required=True, help="time for all of it")
    parser.add_argument("--output", type=a_folder, required=True, metavar="DIR")
    parser.add_argument("--data-directory", help="folder of the text files; otherwise they are downloaded")
    parser.add_argument("--jobs", type=int, default=8, metavar="N", help="cells at a time; default: 8")
    parser.add_argument("--epochs", type=int, metavar="N", help="run the cells with so many epochs instead")
    parser.add_argument("--epoch-steps", type=int, metavar="N", help="steps of these epochs, to rehearse")
    args = parser.parse_args()
    require_positive(args, "jobs", "epochs", "epoch_steps")
    if not 0 < args.minutes < math.inf:
        parser.error(f"--minutes is {args.minutes:g}; it must be above 0 and finite.")
    end = time.monotonic() + 60 * args.minutes
    cells = matching(args.cells)
    if args.epochs is None:
        cells = [cell for cell in cells if read_line(cell, RESULTS) is None]
    if not cells:
        print("All of these cells have a committed line.", flush=True)
        return
    trained = cells if args.epochs is None else [shortened(cell, args.epochs, args.epoch_steps) for cell in cells]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Absolute, because the runs start in another folder.
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    directory = args.data_directory and str(Path(args.data_directory).resolve())
    options = {"epochs": args.epochs, "epoch-steps": args.epoch_steps, "data-directory": directory}
    code = train_until(end, cells, trained, output, cells_written(output), jobs=args.jobs, **options)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    script(main)
