"""Makes the pages of docs/ from the raw results: the command ``python benchmarks/report.py``, see ``report.pages``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python looks for modules in the folder of a script; this one's packages lie one above.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    from benchmarks.report.pages import main
    from bwds.cli import run

    sys.exit(run(main, "benchmarks/report.py", sys.argv[1:]))
