"""Where the arrays of a training run lie: one mesh of devices with the axes ``data`` and ``model``.

Rows of the batch, and the state of the recurrent layers that goes with them, are sharded over ``data``. Columns of the
recurrent layers' matrices, in whole blocks, and tokens of the embedding and the softmax are sharded over ``model``; the
tokens are replicated if they do not divide evenly. Parameters are replicated over ``data``, or with
``shard_optimizer`` sharded there too, like the state of the optimiser and the moving average, and gathered for each
step (fully sharded data parallel: ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054). The mesh is not part of a run's
identity: the run may go on with another one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from bwds.collectives import DATA, MODEL
from bwds.config import ModelConfig
from bwds.output import tell
from bwds.training.devices import MeshConfig
from bwds.training.processes import is_first


class Placement(NamedTuple):
    """Which device holds which array. It is hashable, so that it can be a static argument.

    Attributes:
        mesh: devices [data, model].
        shard_optimizer: between steps, parameters and the state of the optimiser are spread along ``data`` too.
    """

    mesh: Mesh
    shard_optimizer: bool = False

    def specs(self, tree: Any) -> Any:
        """The ``PartitionSpec`` of each array of a tree, from its path in the tree.

        Args:
            tree: parameters, as a step computes with them; or a whole training state, as it is between steps.
        """
        return jax.tree_util.tree_map_with_path(self._spec, tree)

    def shardings(self, tree: Any) -> Any:
        """``specs`` as the shardings that ``jit`` and ``device_put`` take."""
        return jax.tree.map(self.sharding, self.specs(tree), is_leaf=lambda leaf: isinstance(leaf, P))

    def sharding(self, spec: P) -> jax.sharding.Sharding:
        """The sharding of a ``PartitionSpec``. On a single device all arrays have the same one."""
        if self.mesh.size == 1:
            return SingleDeviceSharding(self.mesh.devices.flat[0])
        return NamedSharding(self.mesh, spec)

    @property
    def replicated(self) -> jax.sharding.Sharding:
        """The sharding of an array that is the same on all devices."""
        return self.sharding(P())

    @property
    def rows(self) -> P:
        """The ``PartitionSpec`` of an array whose first dimension is the batch."""
        return P(DATA) if self.mesh.shape[DATA] > 1 else P()

    def spread_rows(self, shape: tuple[int, ...], make: Callable[[slice], np.ndarray]) -> Any:
        """An array whose first dimension is the batch, from a function that makes some of its rows.

        Each process makes only the rows that its devices hold.
        """
        if self.mesh.size == 1:
            return make(slice(0, shape[0]))
        sharding = self.sharding(self.rows)
        return jax.make_array_from_callback(shape, sharding, lambda index: make(index[0]))  # pyrefly: ignore[unsupported-operation]

    def template(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Shapes, dtypes and shardings of the results of a function, without running it."""

        def described(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        tree = jax.eval_shape(function, *arguments)
        return jax.tree.map(described, tree, self.shardings(tree))

    def gathered(self, tree: Any) -> Any:
        """The whole arrays in the memory of this process."""
        whole = tree if self.mesh.size == 1 else jax.jit(lambda tree: tree, out_shardings=self.replicated)(tree)
        return jax.device_get(whole)

    def put(self, tree: Any) -> Any:
        """Replicates arrays that all processes know over all devices."""

        def put(leaf: Any) -> Any:
            return jax.make_array_from_callback(np.shape(leaf), self.replicated, lambda index: np.asarray(leaf)[index])

        return jax.tree.map(put, tree)

    def constrain(self, tree: Any) -> Any:
        """The same tree, its arrays constrained to their shardings; for use under ``jit``."""
        return tree if self.mesh.size == 1 else jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def _spec(self, path: tuple[Any, ...], leaf: Any) -> P:
        field = getattr(path[0], "name", None) if path else None
        if field == "carry":
            return self.rows
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        axes: list[str | None] = [None] * leaf.ndim
        parts = self.mesh.shape[MODEL]
        if parts > 1 and names and "gate" not in names and names[-1] in ("embedding", "kernel", "bias"):
            i = 0 if names[-1] == "embedding" else -1
            # Only the number of tokens may fail to divide evenly; ``make_placement`` checks the columns.
            axes[i] = MODEL if leaf.shape[i] % parts == 0 else None
        if field in ("params", "opt_state", "average") and self.shard_optimizer and self.mesh.shape[DATA] > 1:
            # It cuts the first dimension that divides evenly; small arrays without one stay whole.
            for i, size in enumerate(leaf.shape):
                if axes[i] is None and size % self.mesh.shape[DATA] == 0:
                    axes[i] = DATA
                    break
        # Dimensions at the end that are not sharded are dropped: jit writes specs so, and compares them as written.
        while axes and axes[-1] is None:
            axes.pop()
        return P(*axes)


def over_devices(placement: Placement | None, f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
    """``f`` on every device's share of its arguments; ``f`` itself for a single device, or without a placement."""
    if placement is None or placement.mesh.size == 1:
        return f
    return jax.shard_map(f, mesh=placement.mesh, in_specs=in_specs, out_specs=out_specs)


def make_placement(mesh: MeshConfig | None, model: ModelConfig, *, batch_size: int) -> Placement:
    """The placement of a run. Without a mesh: all on the first device, or on all devices of several processes.

    Raises:
        ValueError: there are too few devices, or what is to be spread does not divide evenly.
    """
    if mesh is None and jax.process_count() == 1:
        return Placement(Mesh(np.array(jax.devices()[:1]).reshape(1, 1), (DATA, MODEL)))
    mesh = mesh or MeshConfig()
    there = jax.device_count()
    if mesh.data is None and mesh.model > there:
        raise ValueError(f"mesh.model is {mesh.model} and there are {there} devices; give at most {there}.")
    if mesh.data is None and there % mesh.model:
        raise ValueError(
            f"mesh.model is {mesh.model}, which does not divide the {there} devices; choose one that does, or give "
            "mesh.data too, to leave some out."
        )
    data = there // mesh.model if mesh.data is None else mesh.data
    if data * mesh.model > there:
        cpu = f" With JAX_NUM_CPU_DEVICES={data * mesh.model} in the environment a CPU stands for as many devices."
        raise ValueError(
            f"mesh.data {data} and mesh.model {mesh.model} need {data * mesh.model} devices and there are {there}; "
            f"their product must be at most {there}.{cpu * (jax.default_backend() == 'cpu')}"
        )
    if jax.process_count() > 1 and data * mesh.model != there:
        raise ValueError(
            f"mesh.data {data} and mesh.model {mesh.model} leave out some of the {there} devices of "
            f"{jax.process_count()} processes; their product must be {there}."
        )
    default = "" if mesh.data else f" (the default for {there} devices)"
    _check_divides(f"mesh.data is {data}{default}", data, batch_size, "rows of the batch", "data.batch_size")
    columns = model.matrix_shape[1]
    if model.method == "dynamic":
        columns //= model.block_size
    _check_divides(f"mesh.model is {mesh.model}", mesh.model, columns, "columns of blocks", "model.hidden_size")
    if mesh.shard_optimizer and data == 1 and is_first():
        tell("warning: mesh.shard_optimizer changes nothing with one device along mesh.data.")
    devices = jax.devices()[: data * mesh.model]
    made = jax.make_mesh((data, mesh.model), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=devices)
    return Placement(made, mesh.shard_optimizer)


def _check_divides(given: str, devices: int, count: int, what: str, other: str) -> None:
    if count % devices:
        raise ValueError(f"{given}, which does not divide the {count} {what}; choose one that does, or change {other}.")
