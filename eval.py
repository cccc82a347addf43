"""Evaluates a trained model on a split, or lets it write; ``bwds eval`` is the same.

    python eval.py --workdir DIR [--split test] [--checkpoint best]
    python eval.py --workdir DIR --generate "some words" [--words 50]
    python eval.py --help

The steps of an evaluation, and the files that do them:

    the options name a run and what to do with it                 bwds/cli/eval.py
    its folder gives configuration, vocabulary and parameters     bwds/training/trained.py
    a split becomes token ids, in the run's vocabulary            bwds/data/corpus.py, bwds/tokens.py
    state runs on through the split, and every token counts once  bwds/data/batches.py, bwds/training/evaluation.py
    or a prompt is continued, token after token                   bwds/generate.py, bwds/sampling.py
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from bwds.cli import run


def main(arguments: Sequence[str]) -> None:
    from bwds.cli import eval as evaluation

    evaluation.main(arguments, script=Path(__file__))


if __name__ == "__main__":
    sys.exit(run(main, "eval.py", sys.argv[1:]))
