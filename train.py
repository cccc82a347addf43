"""Trains a language model with block-wise dynamic sparseness; ``bwds train`` is the same.

    python train.py [PRESET] [--workdir DIR] [--data.directory DIR] [--model.sparsity S] [--train.steps N] ...
    python train.py --help

The steps of a run, and the files that do them:

    the options become a configuration                        bwds/cli/train.py, bwds/config.py, bwds/presets.py
    text becomes token ids                                    bwds/data/corpus.py, bwds/tokens.py
    the configuration becomes a model, pure functions         bwds/model.py
    a run is begun, or found again at its last checkpoint     bwds/training/run.py
    step after step: a window of text, a gradient, an update  bwds/training/loop.py, bwds/training/step.py
    between steps: evaluations, checkpoints, signals          bwds/training/boundary.py
    the summary of the finished run                           bwds/training/summary.py
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bwds.cli import run


def main(arguments: Sequence[str]) -> None:
    from bwds.cli import train

    train.main(arguments, script=Path(__file__))


if __name__ == "__main__":
    sys.exit(run(main, "train.py", sys.argv[1:]))
