"""Training runs in processes of their own, to be killed, and what must be the same in the end."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bwds.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]


def environment(cache: Path) -> dict[str, str]:
    """Variables of a process that keeps its compiled programs for the CPU in a folder, where the next finds them."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


def start(arguments: list[str], cache: Path, **changes: str) -> subprocess.Popen[str]:
    """``train.py`` with some arguments, and with changes to its environment."""
    return subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        env=environment(cache) | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool], *, every: float = 0.001) -> bool:
    """Whether a condition came true while the process ran. Raises ``TimeoutError`` after two minutes."""
    end = time.monotonic() + 120.0
    while process.poll() is None:
        if condition():
            return True
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError("Nothing happened for two minutes.")
        time.sleep(every)
    return False


def outcome(workdir: Path) -> dict[str, Any]:
    """What a run leaves that depends on its configuration and text alone."""
    summary = json.loads((workdir / "summary.json").read_text())
    lines = [(line["step"], line["split"], line["loss"]) for line in read_metrics(workdir / "metrics.jsonl")]
    same = ("steps", "parameters_sha256", "validation_perplexity", "best_step")
    return {name: summary[name] for name in same} | {"lines": lines}
