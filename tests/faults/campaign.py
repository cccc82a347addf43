"""Kills training runs at random moments, and checks that each ends as one that nothing stopped.

    python -m tests.faults.campaign [--kills 50] [--seed 0] [--output FILE]

The model is tiny, and every step writes a checkpoint. A third of the SIGKILLs come at any time after the start of the
process, a third some time after a step, and a third inside a checkpoint write: as soon as its folder is there and a
few milliseconds more. The next process goes on; when a run is done, another is begun. In the end all runs must have
the same parameters, bit for bit, and one line in the metrics for every step and evaluation.

Exit codes: 0 all are the same; 1 something was lost.
"""

import argparse
import contextlib
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import jax
from tqdm import tqdm

from bwds.training.manifest import MANIFEST_FILE
from tests import tiny_run
from tests.faults.runs import ROOT, outcome, start, wait_for

STEPS = 60
# Longer than the part of a process's life before its first step.
STARTUP_S = 8.0
# Longer than one write of a checkpoint of this size.
WRITE_S = 0.04


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which processes are killed")
    parser.add_argument("--output", type=Path, help="file that the figures are written to, in JSON")
    args = parser.parse_args()
    if args.kills < 1:
        parser.error(f"--kills is {args.kills}; it must be at least 1")
    with tempfile.TemporaryDirectory() as scratch:
        figures = campaign(Path(scratch), kills=args.kills, seed=args.seed) | versions()
    print(json.dumps(figures, indent=2))
    if args.output:
        args.output.write_text(json.dumps(figures) + "\n")
    return 0 if figures["runs_that_differ"] == 0 else 1


def versions() -> dict[str, object]:
    """What the figures were found with."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        revision = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    return {"python": platform.python_version(), "jax": jax.__version__, "revision": revision}


def campaign(scratch: Path, *, kills: int, seed: int) -> dict[str, object]:
    """The figures of a campaign in a folder."""
    corpus = tiny_run.write_corpus(scratch / "text")
    config = tiny_run.config(corpus, steps=STEPS, checkpoint_every=1, eval_every=7)
    cache = scratch / "compiled"
    began = time.monotonic()

    def arguments(name: str) -> list[str]:
        return tiny_run.arguments(config, scratch / name)

    def finish(name: str) -> dict[str, object]:
        process = start(arguments(name), cache)
        _, err = process.communicate()
        if process.returncode:
            raise RuntimeError(f"A run that nothing stops ended with code {process.returncode}: {err}")
        return outcome(scratch / name)

    expected = finish("whole")
    choose = random.Random(seed)
    counted: Counter[str] = Counter()
    interrupted, names = 0, ["run-0"]
    with tqdm(total=kills, unit="kill", file=sys.stderr, disable=None) as bar:
        while sum(counted.values()) < kills:
            workdir = scratch / names[-1]
            began_process, process = time.time(), start(arguments(names[-1]), cache)
            moment = choose.choice(("start", "step", "write"))
            if not killed(process, workdir, moment, choose):
                # It was done before the moment came.
                names.append(f"run-{len(names)}")
                continue
            counted[moment] += 1
            interrupted += unfinished(workdir, since=began_process)
            bar.update()
    found = [finish(name) for name in names if (scratch / name).exists()]
    return {
        "kills": sum(counted.values()),
        "kills_by_moment": dict(sorted(counted.items())),
        "kills_that_left_an_unfinished_checkpoint": interrupted,
        "runs": len(found),
        "runs_that_differ": sum(other != expected for other in found),
        "steps_of_a_run": STEPS,
        "seed": seed,
        "seconds": round(time.monotonic() - began),
    }


def killed(process, workdir: Path, moment: str, choose: random.Random) -> bool:
    """Kills a process at a moment of a kind; False if it ended before, and an error if that was no good end."""
    last = workdir / "checkpoints" / "last"
    before = newest(last)
    if moment == "start":
        end = time.monotonic() + choose.uniform(0.0, STARTUP_S)
        come = wait_for(process, lambda: time.monotonic() > end)
    elif moment == "step":
        target = before + choose.randrange(1, 9)
        come = wait_for(process, lambda: newest(last) >= target)
        time.sleep(choose.uniform(0.0, 2 * WRITE_S))
    else:
        target, now = before + choose.randrange(0, 4), time.time()
        come = wait_for(process, lambda: newest(last) >= target and unfinished(workdir, since=now), every=0.0)
        time.sleep(choose.uniform(0.0, WRITE_S))
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"A process ended by itself with code {process.returncode}: {err}")
    return come and process.returncode == -signal.SIGKILL


def newest(last: Path) -> int:
    """The newest step with a folder of its own; 0: none."""
    return max((int(path.name) for path in last.glob("[0-9]*") if path.name.isdigit()), default=0)


def unfinished(workdir: Path, *, since: float) -> bool:
    """Whether there is a checkpoint that is not whole, and was begun after some time."""
    for folder in workdir.glob("checkpoints/*/[0-9]*"):
        # It may be renamed or removed while this looks at it.
        with contextlib.suppress(FileNotFoundError):
            if not (folder / MANIFEST_FILE).is_file() and folder.stat().st_mtime > since:
                return True
    return False


if __name__ == "__main__":
    sys.exit(main())
