"""Collectives of the model on the mesh that it runs on, under ``jax.shard_map``.

Rows of the batch are sharded over the axis ``data``. Columns of the large matrices, and tokens of the vocabulary, are
sharded over ``model``; all else is replicated there. A value's type says over which axes it varies, so these functions
take no argument for that. They change nothing outside of ``shard_map``, and where an axis is not used.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bwds.array_types import Array, Float, Int, Int32
from pallas_kernels.mesh_axes import axes_of

DATA, MODEL = "data", "model"


def global_rows(x: Float[Array, "B ..."]) -> Int32[Array, " B"]:
    """The indices that the rows of ``x`` have in the batch of all devices."""
    rows = jnp.arange(x.shape[0], dtype=jnp.int32)
    return rows + lax.axis_index(DATA) * x.shape[0] if DATA in axes_of(x) else rows


def local_columns(array: Array, owner: Array, axis: int = -1) -> Array:
    """The slice of an axis that belongs to the columns of ``owner`` on this device.

    Args:
        array: replicated over ``model``.
        owner: varies over ``model`` if its columns are sharded; if not, ``array`` is returned as it is.
        axis: of ``array``.
    """
    return _own(array, axis % array.ndim) if MODEL in axes_of(owner) else array


def global_shape(array: Array) -> tuple[int, ...]:
    """The shape of the array with the columns of all devices."""
    *leading, columns = array.shape
    return (*leading, columns * lax.axis_size(MODEL) if MODEL in axes_of(array) else columns)


def all_gather_columns(array: Array, axis: int = -1) -> Array:
    """``all_gather`` of the columns over ``model``; ``array`` as it is if it does not vary over that axis."""
    if MODEL not in axes_of(array):
        return array
    return lax.all_gather(array, MODEL, axis=axis % array.ndim, tiled=True, to="invarying")


def psum(tree: Any, axis: str = MODEL) -> Any:
    """``psum`` over an axis of all arrays that vary over it, in one message; other arrays as they are."""
    leaves, structure = jax.tree.flatten(tree)
    differ = [axis in axes_of(leaf) for leaf in leaves]
    sums = iter(lax.psum([leaf for leaf, d in zip(leaves, differ, strict=True) if d], axis) if any(differ) else [])
    return structure.unflatten([next(sums) if d else leaf for leaf, d in zip(leaves, differ, strict=True)])


def pmean(tree: Any, axis: str = DATA) -> Any:
    """``pmean`` over an axis of all arrays that vary over it, in one message; other arrays as they are."""

    def divide(total: Array, leaf: Array) -> Array:
        return total / lax.axis_size(axis) if axis in axes_of(leaf) else total

    return jax.tree.map(divide, psum(tree, axis), tree)


def pmean_scatter(tree: Any, specs: Any) -> Any:
    """Means over ``data``; an array that is to be sharded over ``data`` is reduced and scattered (``psum_scatter``).

    Args:
        tree: arrays.
        specs: the sharding that each array is to have.
    """
    leaves, structure = jax.tree.flatten(tree)
    specs = structure.flatten_up_to(specs)
    # One message for all replicated arrays. A scattered array needs half of the traffic.
    whole = iter(pmean([leaf for leaf, spec in zip(leaves, specs, strict=True) if DATA not in spec]))

    def share(leaf: Array, spec: Any) -> Array:
        total = lax.psum_scatter(leaf, DATA, scatter_dimension=tuple(spec).index(DATA), tiled=True)
        return total / lax.axis_size(DATA)

    means = [share(leaf, spec) if DATA in spec else next(whole) for leaf, spec in zip(leaves, specs, strict=True)]
    return structure.unflatten(means)


# JAX's own transpose would pad a device's slice with zeros and psum the whole array: twice the traffic.
@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _own(array, axis):
    size = array.shape[axis] // lax.axis_size(MODEL)
    return lax.dynamic_slice_in_dim(array, lax.axis_index(MODEL) * size, size, axis)


_own.defvjp(
    lambda array, axis: (_own(array, axis), None), lambda axis, _, cotangent: (all_gather_columns(cotangent, axis),)
)


def look_up(table: Float[Array, "V H"], tokens: Int[Array, "*b"]) -> Float[Array, "*b H"]:
    """Rows of an embedding table, whose rows may be sharded over ``model``."""
    place, here = local_tokens(table, table.shape[0], tokens)
    rows = table[place]
    return rows if here is None else psum(jnp.where(here[..., None], rows, 0.0))


def local_tokens(array: Array, count: int, tokens: Int[Array, "*b"]) -> tuple[Int[Array, "*b"], Any]:
    """Indices of tokens among the ``count`` on this device, and a mask of those that are on it; None: all are."""
    if MODEL not in axes_of(array):
        return tokens, None
    place = tokens - lax.axis_index(MODEL) * count
    return jnp.clip(place, 0, count - 1), (place >= 0) & (place < count)
