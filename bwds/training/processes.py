"""Several processes, each with its own devices, that train one model together on JAX's distributed runtime.

All run the same program and meet in every computation. Some work, such as writing into the run's folder, is done by the
first process alone, and the others wait for it. If that raises an error, all processes raise it.
"""

import contextlib
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from bwds.errors import is_refusal, too_little_memory
from bwds.output import tell
from bwds.training.devices import DistributedConfig

T = TypeVar("T")

_meetings = itertools.count()
"""Numbers the meetings of this process; all processes have the same meetings in the same order."""


def connect(config: DistributedConfig) -> None:
    """Joins the other processes, if there are any. Must come before anything else that JAX does.

    Raises:
        ValueError: the others, or the cluster, cannot be found.
    """
    if config.processes is None and not config.auto and not _started_together():
        return
    # The service swallows SIGTERM until training listens for it, and nothing here asks it about preemption.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            config.coordinator,
            config.processes,
            config.process,
            heartbeat_timeout_seconds=config.heartbeat,
            # A process that ends waits this long for the others.
            shutdown_timeout_seconds=config.heartbeat,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        if config.processes is None:
            message = (
                f"The other processes cannot be found ({reason}); give distributed.coordinator, "
                "distributed.processes and distributed.process."
            )
        else:
            message = f"Process {config.process} cannot join {config.coordinator} ({reason})."
        raise ValueError(message) from error


def _started_together() -> bool:
    """Whether the environment says that this process is one of several.

    It looks for JAX's own variable, and for those of a TPU slice under GKE, of SLURM and of Open MPI.
    """
    there = os.environ
    return (
        "JAX_COORDINATOR_ADDRESS" in there
        or "," in there.get("TPU_WORKER_HOSTNAMES", "")
        or any(there.get(name, "1") != "1" for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    )


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """With several processes, an error that only this one may have ends it with the message and exit code 1.

    An orderly end would wait for the others, which wait for this one. They end when they notice that it is gone: at
    once if it was the first process, otherwise after ``distributed.heartbeat``. A single process is not affected.
    """
    try:
        yield
    except (OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
        if jax.process_count() == 1:
            raise
        memory = too_little_memory(error)
        message = memory or str(error).splitlines()[0]
        if memory is None and not isinstance(error, OSError):
            message += ". Most likely another process has ended; start all again to go on from the last checkpoint"
        tell(f"error: {message}")
        os._exit(1)


def is_first() -> bool:
    """Whether this process is the one that writes files and messages."""
    return jax.process_index() == 0


def _meet() -> None:
    """Waits up to a day for all processes; a dead one ends the wait. A collective might give up after 30 s."""
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key=f"meeting {next(_meetings)}", timeout_ms=24 * 3600 * 1000)


def from_first(value: Any) -> Any:
    """The JSON value of the first process, in all processes; the values of the others are ignored."""
    return value if jax.process_count() == 1 else _from(0, value)


def _from(process: int, value: Any) -> Any:
    """The JSON value of one process, in all processes."""
    source = jax.process_index() == process
    sent = np.frombuffer(json.dumps(value).encode() if source else b"", np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(sent)), is_source=source))
    # All processes must give an array of the same size, so the size is sent first.
    padded = np.zeros(size, np.uint8)
    padded[: len(sent)] = sent[:size]
    found = multihost_utils.broadcast_one_to_all(padded, is_source=source)
    return json.loads(np.asarray(found, np.uint8).tobytes())


def first_then_all(function: Callable[[], T]) -> T:
    """``function()`` in the first process, and then, when it is done there, in the others.

    Raises:
        ValueError: as ``first_alone``, for an error in any of the processes.
        OSError: as ``first_alone``, for an error in any of the processes.
        RuntimeError: as ``first_alone``, for an error in any of the processes.
    """
    result: Any = first_alone(function)
    return _error_of_one_is_of_all(lambda: result if is_first() else function())


def first_alone(function: Callable[[], T]) -> T:
    """``function()`` in the first process; the others wait and get None.

    An error in the first process is raised there as it is, and in the others with the same message.

    Raises:
        OSError: in the others, if the error is an ``OSError``.
        ValueError: in the others, if the error is a ``ValueError`` that ``is_refusal``.
        RuntimeError: in the others, for any other error.
    """
    nothing: Any = None
    return _error_of_one_is_of_all(lambda: function() if is_first() else nothing)


def _error_of_one_is_of_all(function: Callable[[], T]) -> T:
    if jax.process_count() == 1:
        return function()
    result: Any = None
    error: Exception | None = None
    try:
        result = function()
    except Exception as raised:  # Any error, because the other processes wait.
        error = raised
    _meet()
    failed = np.asarray(multihost_utils.process_allgather(np.bool_(error is not None))).ravel()
    if failed.any():
        process = int(failed.argmax())
        kind = "system" if isinstance(error, OSError) else "refusal" if error and is_refusal(error) else "mistake"
        kind, message = _from(process, [kind, str(error)])
        if error is not None:
            raise error
        message = f"Process {process}: {message}" if process else message
        raise {"system": OSError, "refusal": ValueError, "mistake": RuntimeError}[kind](message)
    return result


def check_shared(file: Path) -> None:
    """Raises ``ValueError`` in all processes unless all see the same file as the first, on a shared file system."""
    if jax.process_count() == 1:
        return
    content = from_first(file.read_text(encoding="utf-8") if is_first() else None)

    def look() -> None:
        if not file.is_file() or file.read_text(encoding="utf-8", errors="replace") != content:
            raise ValueError(
                f"The folder {str(file.parent)!r} is not the one that process 0 sees under its workdir; give all "
                "processes the same folder, on a file system that they share."
            )

    _error_of_one_is_of_all(look)


def check_same(what: str, *values: Any) -> None:
    """Raises ``ValueError`` in all processes unless all call it with the same bytes or arrays."""
    if jax.process_count() > 1:
        checksum = 0
        for value in values:
            checksum = zlib.crc32(value, checksum)
        sums = np.asarray(multihost_utils.process_allgather(np.uint32(checksum))).ravel()
        others = [i for i, other in enumerate(sums) if other != sums[0]]
        if others:
            raise ValueError(
                f"{what} differs between process 0 and {', '.join(map(str, others))}; all must be started alike."
            )


def process_max(value: int) -> Any:
    """Starts to compute the maximum over all processes; calling ``int`` on the result waits for it."""
    if jax.process_count() == 1:
        return value
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "all")
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
    values = jax.make_array_from_callback((mesh.size,), spread, lambda index: np.array([value], np.int32))
    return _max(values)


@jax.jit
def _max(values: Any) -> Any:
    return values.max()
