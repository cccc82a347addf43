"""Training on a CPU keeps the memory that it frees, unless the user has set the allocator otherwise."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from bwds.training.allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of glibc is set")

# The first product is a temporary array of 100 MB, of which XLA's threads write the parts.
FAULTS = """
import resource, sys
from bwds.training.allocator import keep_freed_memory

kept = keep_freed_memory()
import jax, jax.numpy as jnp

@jax.jit
def f(x):
    return jnp.sum((x[:, None] @ x[None]) @ jnp.ones((x.size, 8)))

x = jnp.arange(5_000.0)
faults = []
for _ in range(21):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    f(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, sorted(faults)[10])  # the heap grows in a few of the calls
"""


def measured(**environment):
    """Whether memory is kept, and the median of page faults a call, of a new process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=clean | environment, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    return kept == "True", float(faults)


def test_the_pages_of_temporaries_are_not_cleared_anew_in_each_call():
    kept, faults = measured()
    theirs, theirs_faults = measured(MALLOC_TOP_PAD_="131072")  # glibc's default
    assert kept
    assert not theirs
    # 100 MB are 24,400 pages of 4 kB.
    assert theirs_faults > 20_000
    assert faults < 1_000


@pytest.mark.parametrize("environment", [{"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}, {"MALLOC_ARENA_MAX": "4"}])
def test_the_users_own_settings_stay(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not keep_freed_memory()


@pytest.mark.parametrize("installed", ["jax_plugins", "libtpu"])
def test_where_jax_may_take_another_device_nothing_is_set(monkeypatch, installed):
    monkeypatch.setattr("bwds.training.allocator.importlib.util.find_spec", lambda name: name == installed or None)
    platforms = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    try:
        assert not keep_freed_memory()
    finally:
        jax.config.update("jax_platforms", platforms)
