"""Memory that training frees on a CPU stays in the process.

XLA allocates the temporary arrays of a step anew in each step. glibc gets every block of over 32 MB from the kernel and
gives it back at once, so the kernel clears the same pages in each step. A small model spends a fifth of its time on
that with one core, and half of it with two, whose threads wait for each other there.
"""

import ctypes
import importlib.util
import os
import platform

import jax

# Parameters of mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed, and returns whether it did.

    It does so only where JAX computes on the CPU, and where the environment says nothing else about malloc
    (``MALLOC_...``, ``GLIBC_TUNABLES``). It must be called before JAX starts its threads: each thread would take an
    arena of its own, and such arenas hold no large blocks.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or platform.libc_ver()[0] != "glibc" or not _only_cpu():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
        mallopt(parameter, value)
    return True


def _only_cpu() -> bool:
    """Whether JAX will compute on the CPU: it is told to, or no package for another chip is installed."""
    platforms = jax.config.values["jax_platforms"]
    if platforms:
        return platforms == "cpu"
    return not any(importlib.util.find_spec(package) for package in ("jax_plugins", "libtpu"))
