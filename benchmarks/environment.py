"""Where and how a benchmark runs: device, versions, revision, and the command."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
from jax.extend.backend import get_backend

from benchmarks import ROOT
from pallas_kernels.threads import cores

INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Vector instructions that processors of one name have or lack."""


def pinned() -> str:
    """The prefix of a command that runs on the cores of this process; empty if it may use all cores."""
    if cores() == (os.cpu_count() or 1):
        return ""
    return f"taskset -c {','.join(map(str, sorted(os.sched_getaffinity(0))))} "


def typed() -> list[str]:
    """The script and the arguments of this process; for a module, ``-m`` and its name in place of its path."""
    spec = sys.modules["__main__"].__spec__
    return sys.argv if spec is None else [f"-m {spec.name}", *sys.argv[1:]]


def revision() -> dict[str, Any]:
    """The commit, and whether files differ from it; "unknown" if git does not track this file, or there is no git.

    Changes of results, and of the pages made of them, do not count. In a copy without a repository, the variable
    ``BWDS_REVISION`` may name the commit.
    """
    if named := os.environ.get("BWDS_REVISION"):
        return {"revision": named, "modified": False}
    paths = [".", ":(exclude)benchmarks/results", ":(exclude)docs"]
    try:
        # This comes first: a copy may lie inside another repository, which does not track it.
        _git("ls-files", "--error-unmatch", __file__)
        commit = _git("rev-parse", "HEAD")
        return {"revision": commit, "modified": bool(_git("diff", "--name-only", "HEAD", "--", *paths))}
    except (OSError, subprocess.CalledProcessError):
        return {"revision": "unknown", "modified": False}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def environment() -> dict[str, Any]:
    """Device, versions, revision and command: all that is needed to run it again."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cores": cores(),
        "processor": _cpuinfo("model name") or platform.processor(),
        "instructions": [name for name in INSTRUCTIONS if name in _cpuinfo("flags").split()],
        "cache": _largest_cache(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "libtpu", "torch") if find_spec(name)},
        **(cuda() if device.platform == "gpu" else {}),
        **revision(),
        "command": pinned() + " ".join(["python", *typed()]),
    }


def cuda() -> dict[str, str]:
    """Versions of CUDA, as JAX's client names it, and of the installed packages of JAX, cuDNN and cuBLAS."""
    found = {package.metadata["Name"]: package.version for package in importlib.metadata.distributions()}
    packages = {name: v for name, v in found.items() if name.startswith(("jax-cuda", "nvidia-cudnn", "nvidia-cublas"))}
    return {"cuda": get_backend().platform_version, **dict(sorted(packages.items()))}


def _cpuinfo(field: str) -> str:
    """What Linux says about the first processor; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")


def _largest_cache() -> str:
    """Size of the third level, as Linux writes it; nothing where it does not say."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
    except OSError:
        return ""
