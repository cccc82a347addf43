"""Measures bwds on this machine, in as many minutes as you give it.

    python benchmarks/hardware.py --minutes 10 --output DIR [--data-directory DIR] [--only PART ...] [--after PART]
    python benchmarks/hardware.py --list
    python benchmarks/hardware.py --only pays

Are the kernels right on this device, how fast are they, and what does training with them come to? The parts run in
order of value until the time is up. Each runs in a process of its own, which may not take longer than its limit. If one
fails, that is reported, and the next one runs. DIR/lines.jsonl gets a line for every case as soon as it is measured.
DIR/log.txt gets the output of the parts. DIR/summary.md is a page with the ratios, what ran and what is left; it is
written anew after each part. The same command goes on with the parts that have not ended yet. DIR/cache keeps compiled
programs.

A GPU or TPU runs its kernels at the sizes of the paper and above, a CPU the same parts at small sizes. --only pays
answers one question on a CPU, in a minute: from which width on does skipping blocks pay here?

The text is Penn Treebank. With --data-directory, a folder of its three files, nothing is downloaded.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.command import a_folder
from benchmarks.measure.hardware_page import Line, how_it_ended, page
from benchmarks.measure.hardware_parts import LARGE, SMALL, Part, chosen
from bwds.output import say

SPARE = 3.0
"""Seconds that a part gets to end by itself; writing the last page gets as many."""
LEAST = 10.0
"""No part begins with less than so many seconds left."""

_PROGRAM = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
ENDS_WITH_PARENT = [sys.executable, "-c", _PROGRAM] if sys.platform == "linux" else []
"""Prefix of a command that Linux ends when this process is killed, so that no part runs on beside the next ones."""


class Output:
    """The folder of the results."""

    def __init__(self, folder: Path) -> None:
        self.lines, self.log, self.summary = (folder / name for name in ("lines.jsonl", "log.txt", "summary.md"))
        self.cache, self.runs = folder / "cache", folder
        folder.mkdir(parents=True, exist_ok=True)
        if self.lines.exists():
            # Drops an unfinished last line that a killed process left.
            whole = self.lines.read_bytes()
            self.lines.write_bytes(whole[: whole.rfind(b"\n") + 1])

    def read(self) -> list[Line]:
        """All lines."""
        return [json.loads(line) for line in self.lines.read_text().splitlines()] if self.lines.exists() else []

    def ended(self) -> dict[str, Line]:
        """The last line of every part that was run, by its name."""
        return {line["part"]: line for line in self.read() if line["benchmark"] == "part"}

    def write(self, **values: Any) -> None:
        """A line of this script's own."""
        with self.lines.open("a") as file:
            file.write(json.dumps(values) + "\n")


def platform() -> str:
    """cpu, gpu or tpu. Another process looks, because this one leaves the device to the parts."""
    program = "import jax; print(jax.default_backend())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"JAX does not start here: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout.split()[-1]


def run_part(part: Part, output: Output, left: float, directory: str | None) -> Line:
    """Runs a part and returns its line.

    Args:
        part: which.
        output: where its lines and what it says go.
        left: seconds that there are for it.
        directory: of the text files.
    """
    limit = left if part.seconds is None else min(left, max(90.0, 3.0 * part.seconds))
    module, *arguments = part.command.split()
    # -P: Python imports nothing from the folder in which this was started.
    command = [*ENDS_WITH_PARENT, sys.executable, "-P", "-m", f"benchmarks.{module}", *arguments]
    if part.seconds is None:
        command += [f"--minutes={(limit - SPARE) / 60:.3f}", f"--output={output.runs}"]
        command += [] if directory is None else [f"--data-directory={directory}"]
    else:
        command += [f"--output={output.lines}"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "JAX_COMPILATION_CACHE_DIR": str(output.cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    start = time.monotonic()
    with output.log.open("a") as log:
        print(f"\n=== {part.name}: {shlex.join(command[len(ENDS_WITH_PARENT) :])}", file=log, flush=True)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    seconds = round(time.monotonic() - start, 1)
    return {"benchmark": "part", "part": part.name, "exit_code": code, "seconds": seconds, "limit": round(limit, 1)}


def end(process: subprocess.Popen) -> None:
    """Ends a part, with all processes it has started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(SPARE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all of it; default: 10")
    parser.add_argument("--output", type=a_folder, metavar="DIR", default=Path("hardware"), help="default: hardware")
    parser.add_argument("--data-directory", help="folder of Penn Treebank's text files; otherwise they are downloaded")
    parser.add_argument("--only", nargs="+", metavar="PART", help="run these parts")
    parser.add_argument("--after", metavar="PART", help="leave out the parts up to this one")
    parser.add_argument("--list", action="store_true", help="show the parts; run nothing")
    args = parser.parse_args(arguments)
    start = time.monotonic()
    if not 0 < args.minutes < float("inf"):
        raise ValueError(f"--minutes is {args.minutes:g}; it must be above 0 and finite.")
    parts = chosen(SMALL if platform() == "cpu" else LARGE, args.only, args.after)
    if args.list:
        for part in parts:
            expected = "the rest" if part.seconds is None else f"{part.seconds} s"
            print(f"{part.name:<16}{expected:>10}  {part.tells}")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    output = Output(args.output.resolve())
    try:
        for part in parts:
            ended, left = output.ended().get(part.name), 60 * args.minutes - (time.monotonic() - start) - 2 * SPARE
            if ended is not None and ended["exit_code"] == 0:
                say(f"{part.name}: {how_it_ended(ended)} before")
                continue
            if left < LEAST:
                break
            say(f"{part.name}: {part.tells} ...")
            line = run_part(part, output, left, args.data_directory and str(Path(args.data_directory).resolve()))
            output.write(**line)
            output.summary.write_text(page(output.read(), parts))
            say(f"{part.name}: {how_it_ended(line)}")
    finally:
        output.summary.write_text(page(output.read(), parts))
    say(f"\n{output.summary.read_text()}\n{output.lines} has the raw lines, {output.log} what the parts said.")
