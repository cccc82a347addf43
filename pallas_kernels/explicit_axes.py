"""Arrays on a mesh of Explicit axes, as ``jax.make_mesh`` makes them: there the sharding is part of the type.

The loops here say nothing about shardings, and JAX asks every operation on such arrays to. So a public function runs as
on a mesh of Auto axes, where XLA spreads the work, and says what sharding its results have.
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
    """Makes a function take arrays on a mesh with Explicit axes; without one nothing changes.

    Args:
        results: of the function's arguments: the ``PartitionSpec`` of its results, a tree, or one for a whole branch.
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
    """How an array is spread, with an entry for every dimension."""
    return jax.typeof(array).sharding.spec


def rows_as(x: Any, *trailing: Any) -> PartitionSpec:
    """Leading dimensions spread as those of ``x`` [..., K], and others."""
    leading = tuple(spec_of(x))[:-1]
    taken = {axis for axes in leading for axis in (axes if isinstance(axes, tuple) else (axes,))}
    return PartitionSpec(*leading, *(None if axis in taken else axis for axis in trailing))
