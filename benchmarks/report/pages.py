"""Pages of docs/ whose tables and plots come from the raw results in benchmarks/results/.

    python benchmarks/report.py [performance] [decision] [results] [tpu_pod]

A part NAME is a module benchmarks/report/NAME.py with a function write(results_dir, docs_dir); all parts if none is
named. The same raw lines give the same files, byte for byte.
"""

import argparse
import importlib
from collections.abc import Sequence

from benchmarks import ROOT

PARTS = ("performance", "decision", "results", "tpu_pod")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none is named")
    args = parser.parse_args(arguments)
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"part {', '.join(sorted(unknown))} is unknown; choose from {', '.join(PARTS)}")
    for part in args.parts or PARTS:
        importlib.import_module(f"benchmarks.report.{part}").write(ROOT / "benchmarks" / "results", ROOT / "docs")
