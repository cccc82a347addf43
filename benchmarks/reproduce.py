"""Runs cells of the comparison: the command ``python benchmarks/reproduce.py``, see ``quality.reproduce``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python looks for modules in the folder of a script; this one's packages lie one above.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    from benchmarks.quality.reproduce import main
    from bwds.cli import run

    sys.exit(run(main, "benchmarks/reproduce.py", sys.argv[1:]))
