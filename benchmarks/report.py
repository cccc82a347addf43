"""Pages of docs/ whose tables and plots come from the raw results in benchmarks/results/.

    python benchmarks/report.py [performance] [results] [tpu_pod]

A part NAME is a module report_NAME with a function write(results_dir, docs_dir); all parts if none is named. The same
raw lines give the same files, byte for byte.
"""

import argparse
import importlib
from pathlib import Path

from common import script

HERE = Path(__file__).resolve().parent
PARTS = ("performance", "results", "tpu_pod")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none is named")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"part {', '.join(sorted(unknown))} is unknown; choose from {', '.join(PARTS)}")
    for part in args.parts or PARTS:
        importlib.import_module(f"report_{part}").write(HERE / "results", HERE.parent / "docs")


if __name__ == "__main__":
    script(main)
