"""Options that say where a run is trained. They are no part of its configuration, so it may go on elsewhere."""

from dataclasses import dataclass

from bwds.checks import require, require_at_least


@dataclass(frozen=True)
class MeshConfig:
    """How a run is spread over devices. It is no part of the configuration: a run may go on with another mesh."""

    data: int | None = None
    """Devices that share the rows of the batch; None: all there are, divided by --mesh.model."""
    model: int = 1
    """Devices that share the columns of the weights, and the tokens of embedding and softmax if they divide evenly."""
    shard_optimizer: bool = False
    """Between steps, spread parameters and the state of the optimiser over --mesh.data as well (fully sharded)."""

    def __post_init__(self) -> None:
        require_at_least(1, model=self.model)
        if self.data is not None:
            require_at_least(1, data=self.data)


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes that train together. They are no part of a run's configuration either."""

    coordinator: str | None = None
    """Address and port of process 0, like 10.0.0.1:8476; needs --distributed.processes and --distributed.process."""
    processes: int | None = None
    """How many processes there are."""
    process: int | None = None
    """Which of them this is, counted from 0."""
    auto: bool = False
    """Let JAX find the other processes. It always does so under srun, mpirun, and on a TPU slice under GKE."""
    heartbeat: int = 100
    """Seconds without a sign of life after which a process counts as dead, and the others end."""

    def __post_init__(self) -> None:
        named = [value is not None for value in (self.coordinator, self.processes, self.process)]
        require(
            all(named) or not any(named),
            "coordinator, distributed.processes and distributed.process go together; give all three.",
        )
        require_at_least(1, heartbeat=self.heartbeat)
        require(not (self.auto and any(named)), "auto finds the processes itself; do not name them.")
        if self.processes is not None and self.process is not None:
            require_at_least(1, processes=self.processes)
            require(
                0 <= self.process < self.processes,
                f"process is {self.process}; it must be from 0 to {self.processes - 1}.",
            )
