"""Measures bwds on a machine: the command ``python benchmarks/hardware.py``, see ``measure.hardware``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python looks for modules in the folder of a script; this one's packages lie one above.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    from benchmarks.measure.hardware import main
    from bwds.cli import run

    sys.exit(run(main, "benchmarks/hardware.py", sys.argv[1:]))
