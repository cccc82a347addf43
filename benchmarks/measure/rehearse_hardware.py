"""A rehearsal of hardware.py for a machine that has no network and few packages, on a CPU.

    python -m benchmarks.measure.rehearse_hardware --data-directory DIR [--python python3.12] [--minutes 12]
                                                  [--keep FOLDER]

It makes an environment of exactly what such a machine had (``BARE``), a folder with the wheels of hardware_wheels.txt,
and a copy of the repository's files without .git. There it runs hardware.py three times: it kills the first run with
SIGKILL and the second with SIGTERM, and the third goes to the end. It reports faults, and ends with status 1 if there
are any: a line that is not JSON, a part that fails, a page that does not name every part.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import ROOT
from benchmarks.command import a_folder
from bwds.cli import run

BARE = (
    "jax==0.11.2 numpy==2.5.2 flax==0.12.10 optax==0.2.8 orbax-checkpoint==0.12.6 matplotlib tqdm pytest hypothesis "
    "jaxtyping==0.3.11"
)
KILLED = ((60, signal.SIGKILL), (45, signal.SIGTERM))
"""Seconds after which a run is killed, and the signal."""


def prepare(folder: Path, python: str) -> Path:
    """Environment, wheels and copy; the environment's Python."""
    subprocess.run([python, "-m", "venv", folder / "environment"], check=True)
    bare = folder / "environment/bin/python"
    wheels = ROOT / "benchmarks/hardware_wheels.txt"
    subprocess.run([bare, "-m", "pip", "install", "-q", *BARE.split()], check=True)
    install = [bare, "-m", "pip", "install", "-q", "--no-deps", "--target", folder / "site", "-r", wheels]
    subprocess.run(install, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(lambda name: (ROOT / name).is_file(), listed.stdout.splitlines()):
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "copy" / name)
    return bare


def check(output: Path) -> list[str]:
    """What is wrong with the lines so far."""
    faults = []
    for number, line in enumerate((output / "lines.jsonl").read_text().splitlines(), start=1):
        try:
            json.loads(line)
        except ValueError:
            faults.append(f"line {number} is not JSON: {line[:80]}")
    return faults


def rehearse(folder: Path, bare: Path, text: str, minutes: float) -> list[str]:
    """Runs it, killed twice and then to the end; returns what is wrong."""
    output, faults = folder / "output", []
    command = [bare, "benchmarks/hardware.py", f"--minutes={minutes}", "--output", output, "--data-directory", text]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{folder / 'copy'}:{folder / 'site'}",
    }
    for seconds, sign in KILLED:
        process = subprocess.Popen(command, cwd=folder / "copy", env=environment)
        time.sleep(seconds)
        process.send_signal(sign)
        process.wait()
        print(f"killed by {signal.Signals(sign).name} after {seconds} s", flush=True)
        # After SIGKILL the last line may be cut; the next run drops it.
        faults += [] if sign == signal.SIGKILL else check(output)
    subprocess.run(command, cwd=folder / "copy", env=environment, check=False)
    faults += check(output)
    ended = [json.loads(line) for line in (output / "lines.jsonl").read_text().splitlines()]
    last = {line["part"]: line["exit_code"] for line in ended if line["benchmark"] == "part"}
    faults += [f"{part} failed with status {code}; see {output / 'log.txt'}" for part, code in last.items() if code]
    page = (output / "summary.md").read_text()
    return faults + [f"the page does not name {part}" for part in last if f"- {part}: " not in page]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-directory", required=True, help="folder of Penn Treebank's text files")
    parser.add_argument("--python", default="python3.12", help="the interpreter of the environment")
    parser.add_argument("--minutes", type=float, default=12.0, help="of the run that goes to the end")
    parser.add_argument("--keep", type=a_folder, help="folder for all of it; default: a temporary one")
    args = parser.parse_args(arguments)
    folder = args.keep or Path(tempfile.mkdtemp())
    try:
        bare = prepare(folder, args.python)
        faults = rehearse(folder, bare, str(Path(args.data_directory).resolve()), args.minutes)
    finally:
        if args.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    for fault in faults:
        print(f"fault: {fault}")
    print("The rehearsal found nothing wrong." if not faults else f"{len(faults)} faults.")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    sys.exit(run(main, "-m benchmarks.measure.rehearse_hardware", sys.argv[1:]))
