"""Settings of every test: the CPU unless JAX_PLATFORMS says otherwise, annotations checked, ranks never promoted."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Several devices to shard over; all else runs on the first.
jax.config.update("jax_num_cpu_devices", 8)
# An int is fine where a float is annotated, as everywhere in Python.
jaxtyping.install_import_hook(
    ["bwds", "pallas_kernels"], "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

# XLA's newer code generator for CPUs takes two to three times as long to compile a model. With a jax that is newer than
# this one it cannot be switched off, so the tests with the newest jax use it.
if jax.__version_info__ < (0, 11):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()

# Tracing makes small objects by the million, and the collector would look at them every few hundred.
gc.set_threshold(100_000, 50, 100)

ROOT = Path(__file__).parents[1]

# No deadline: the first call of a jitted function compiles it. The same examples in every CI run.
hypothesis.settings.register_profile(
    "bwds", deadline=None, max_examples=25, derandomize="CI" in os.environ, print_blob=True
)
hypothesis.settings.load_profile("bwds")


MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000
"""XLA maps each program into memory, and Linux allows a process 65,530 maps: a file may add as many again."""


@pytest.fixture(scope="module", autouse=True)
def quick_compilation(request) -> Iterator[None]:
    """Leaves out most of XLA's optimisations, because nearly all programs here run for milliseconds.

    It holds for the processes that tests start too. Files marked ``optimized``, those of the kernels in plain XLA
    operations, compile as users do, and share no program with the others.
    """
    if request.node.get_closest_marker("optimized"):
        jax.clear_caches()
        yield
        jax.clear_caches()
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def no_pictures(request) -> Iterator[None]:
    """Keeps training from drawing maps for TensorBoard, except in files marked ``pictures``.

    They take as long as all else in the run of a tiny model.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not request.node.get_closest_marker("pictures"):
            patch.setattr("bwds.training.log.Log._draw_usage", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with the text of ``tiny_run``. It is imported late: tests of kernels need no package for training."""
    import tiny_run

    return tiny_run.write_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def config(corpus) -> Any:
    """A run of 16 steps on that text."""
    import tiny_run

    return tiny_run.config(corpus)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """Folder and summary of that run, which nothing stopped."""
    from bwds.training import train

    workdir = tmp_path_factory.mktemp("run") / "run"
    return workdir, train(config, workdir, progress=False, command="the command")


@pytest.fixture
def all_optimizations() -> Iterator[None]:
    """For programs that are compiled for a chip: as they would run there."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switches the annotation checks off, so that a test of a wrong argument sees the library's own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def no_compiler() -> Callable[[str], NoReturn]:
    """Ends a test that lacks a compiler for other chips. It is skipped; in CI, where all are installed, it fails."""

    def end(reason: str) -> NoReturn:
        (pytest.fail if "CI" in os.environ else pytest.skip)(f"{reason}; .ci/compilers installs it.")

    return end


@pytest.fixture(scope="session")
def compile_for_a_gpu(no_compiler) -> Callable[..., list[dict[str, Any]]]:
    """Runs one of the modules here that compile for a GPU ahead of time; returns the JSON lines that it prints."""

    def run(script: str, *arguments: str) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", f"tests.{script}", *arguments]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600)
        if done.returncode == 3:
            no_compiler(done.stdout.strip())
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run
