"""Watches what would only show after hours of training: memory that grows, and programs that are compiled again.

    python -m tests.long_run [--steps 20000] [--output FILE]

A tiny model, so that the steps take minutes, with an evaluation and a checkpoint after every eighth of them.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax

from bwds.training import log, train
from tests import tiny_run
from tests.faults.campaign import versions

CHECKPOINTS = 8
LOOKS = 40
"""How often the memory is looked at."""


def watch(scratch: Path, *, steps: int, progress: bool) -> dict[str, Any]:
    """The figures of a run in a folder: resident memory along the way in MiB, and [last logged step, name] of every
    program that was compiled."""
    every = steps // CHECKPOINTS
    config = tiny_run.config(
        tiny_run.write_corpus(scratch / "text"), steps=steps, eval_every=every, checkpoint_every=every
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, log_every=steps // LOOKS))
    resident: list[float] = []
    compiled: list[tuple[int, str]] = []
    now = 0

    def count(event: str, _: float, *, fun_name: str = "", **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append((now, fun_name))

    class Watched(log.MetricsWriter):
        def write(self, *, step: int, split: str, **values: float | None) -> None:
            nonlocal now
            super().write(step=step, split=split, **values)
            now = step
            if split == "train":
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                resident.append(round(pages * 4096 / 2**20, 1))

    began = time.monotonic()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        with mock.patch.object(log, "MetricsWriter", Watched):
            train(config, scratch / "run", progress=progress)
    finally:
        jax.monitoring.clear_event_listeners()
    return {
        "steps": steps,
        "checkpoint_every": every,
        "resident_mib": resident,
        "compiled": compiled,
        "seconds": round(time.monotonic() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--output", type=Path, help="file that the figures are written to, in JSON")
    args = parser.parse_args()
    if args.steps < 1 or args.steps % LOOKS:
        parser.error(f"--steps is {args.steps}; it must be a multiple of {LOOKS}")
    with tempfile.TemporaryDirectory() as scratch:
        command = " ".join(["python -m tests.long_run", *sys.argv[1:]])
        figures = watch(Path(scratch), steps=args.steps, progress=True) | versions() | {"command": command}
    print(json.dumps(figures))
    if args.output:
        args.output.write_text(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
