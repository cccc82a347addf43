"""Arrays on a mesh of Explicit axes, the default of ``jax.make_mesh``: there the sharding is part of the type.

JAX asks every operation on such arrays for a sharding, and the loops of this package name none. So a public function
runs as on a mesh of Auto axes, where XLA chooses the shardings inside, and declares the shardings of its results.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def takes_explicit_axes(
    results: Callable[..., Any],
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Makes a function take arrays on a mesh with Explicit axes; without such a mesh nothing changes.

    Args:
        results: takes the function's arguments and returns the ``PartitionSpec`` of its results: a tree of them, in
            which one may stand for a whole subtree.
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def wrapped(*args: Arguments.args, **options: Arguments.kwargs) -> Result:
            leaves, structure = jax.tree.flatten((args, options))
            arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)}
            placed = (jax.typeof(a).sharding.mesh for a in arrays.values() if isinstance(a, jax.Array))
            meshes = [jax.sharding.get_abstract_mesh(), *placed]
            mesh = next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)
            if mesh is None:
                return function(*args, **options)

            def automatic(arrays):
                args, options = structure.unflatten([arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
                return function(*args, **options)

            shardings = jax.tree.map(
                lambda spec: NamedSharding(mesh, spec),
                results(*args, **options),
                is_leaf=lambda spec: isinstance(spec, PartitionSpec),
            )
            run: Callable[..., Any] = jax.sharding.auto_axes(automatic, out_sharding=shardings)
            return run(arrays)

        typed: Any = wrapped
        return typed

    return decorate


def spec_of(array: Any) -> PartitionSpec:
    """How an array is sharded, with an entry for every dimension."""
    return jax.typeof(array).sharding.spec


def rows_as(x: Any, *trailing: Any) -> PartitionSpec:
    """Leading dimensions sharded as those of ``x`` [..., K], then the ``trailing`` ones, without repeating an axis."""
    leading = tuple(spec_of(x))[:-1]
    taken = {axis for axes in leading for axis in (axes if isinstance(axes, tuple) else (axes,))}
    return PartitionSpec(*leading, *(None if axis in taken else axis for axis in trailing))
