"""What all benchmarks share: timing in turns (``bwds.timing``), measured bounds, and one JSON line a case."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend

from bwds import cli
from bwds.timing import Timing, cores, require_turns, time_in_turns

__all__ = ["Timing", "cores", "require_turns", "time_in_turns"]

ROOT = Path(__file__).resolve().parents[1]


def fields(times: dict[str, Timing], unit: str = "us") -> dict[str, Any]:
    """Median and quartiles of each call, as they are written down."""
    scale = {"us": 1e6, "ms": 1e3}[unit]
    medians = {f"{name}_{unit}": t.median * scale for name, t in times.items()}
    return medians | {f"{name}_quartiles_{unit}": [float(f"{q * scale:.5g}") for q in t] for name, t in times.items()}


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes a second of a large update in place, read and written."""
    x = jnp.zeros((megabytes * 2**18,), jnp.float32)
    bytes_moved = 2 * x.nbytes
    update = jax.jit(lambda x: x + 1.0, donate_argnums=0)

    def call():
        nonlocal x
        x = update(x)
        return x

    return bytes_moved / time_in_turns({"copy": call}, turns=7)["copy"].median


def matmul_rate(dtype: Any = jnp.float32, size: int | None = None) -> float:
    """Floating-point operations a second of a square product, two for a multiply-add.

    Args:
        dtype: of the matrices.
        size: rows and columns; None: 2048 on a CPU, 8192 on anything that a smaller product does not fill.
    """
    if size is None:
        size = 2048 if jax.default_backend() == "cpu" else 8192
    # A chip draws less power, and may run faster, on matrices of ones.
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / time_in_turns({"product": lambda: product(x)}, turns=7)["product"].median


def require_positive(arguments: Namespace, *names: str) -> None:
    """Raises ``ValueError`` unless these arguments of a command, where given, are at least 1."""
    for name in names:
        values = getattr(arguments, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")


def pinned() -> str:
    """What a command begins with to run on the cores that this process may use; nothing where these are all."""
    if cores() == (os.cpu_count() or 1):
        return ""
    return f"taskset -c {','.join(map(str, sorted(os.sched_getaffinity(0))))} "


def script(main: Callable[[], None]) -> NoReturn:
    """Ends the process as the commands of bwds end: see ``bwds.cli.run``."""
    sys.exit(cli.run(lambda _: main(), f"benchmarks/{Path(sys.argv[0]).name}", sys.argv[1:]))


def revision() -> dict[str, Any]:
    """The commit, and whether files differ from it; "unknown" where this file is tracked by none, or there is no git.

    Results and the pages made of them are not counted. A copy without a repository is told by ``BWDS_REVISION`` which
    commit it is of.
    """
    if told := os.environ.get("BWDS_REVISION"):
        return {"revision": told, "modified": False}
    paths = [".", ":(exclude)benchmarks/results", ":(exclude)docs"]
    try:
        # First: a copy without a repository of its own may lie in one that knows nothing of it.
        _git("ls-files", "--error-unmatch", __file__)
        commit = _git("rev-parse", "HEAD")
        return {"revision": commit, "modified": bool(_git("diff", "--name-only", "HEAD", "--", *paths))}
    except (OSError, subprocess.CalledProcessError):
        return {"revision": "unknown", "modified": False}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def environment() -> dict[str, Any]:
    """Device, versions, revision and command: what anyone needs to run it again."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cores": cores(),
        "processor": _processor(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "torch") if find_spec(name)},
        **(cuda() if device.platform == "gpu" else {}),
        **revision(),
        "command": pinned() + " ".join(["python", *sys.argv]),
    }


def cuda() -> dict[str, str]:
    """Versions of CUDA as JAX's client names it, and of the packages of JAX, cuDNN and cuBLAS that are installed."""
    found = {package.metadata["Name"]: package.version for package in importlib.metadata.distributions()}
    packages = {name: v for name, v in found.items() if name.startswith(("jax-cuda", "nvidia-cudnn", "nvidia-cublas"))}
    return {"cuda": get_backend().platform_version, **dict(sorted(packages.items()))}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


class Results:
    """Prints rows and appends them to a JSONL file, the environment first; no file if ``path`` is None."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self.write("environment", **environment())

    def write(self, benchmark: str, **values: Any) -> None:
        """One case."""
        rounded = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in values.items()}
        print("  ".join(f"{k} {v}" for k, v in rounded.items()), flush=True)
        if self._path is not None:
            with self._path.open("a") as file:
                print(json.dumps({"benchmark": benchmark, **rounded}), file=file)
