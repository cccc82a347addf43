"""What the model does about the mesh it runs on, under ``jax.shard_map``.

Rows of the batch lie along the axis ``data``. Columns of the large matrices, and words of the vocabulary, lie along
``model``; all else is the same there. Which axes a value differs along is part of its type, so nothing has to be told:
outside of ``shard_map``, and where an axis is not used, these functions change nothing.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bwds.array_types import Array, Float, Int, Int32
from pallas_kernels.explicit_axes import spec_of, takes_explicit_axes
from pallas_kernels.mesh_axes import axes_of

DATA, MODEL = "data", "model"


def global_rows(x: Float[Array, "B ..."]) -> Int32[Array, " B"]:
    """The places of the rows of ``x`` in the batch of all devices."""
    rows = jnp.arange(x.shape[0], dtype=jnp.int32)
    return rows + lax.axis_index(DATA) * x.shape[0] if DATA in axes_of(x) else rows


def own_columns(array: Array, owner: Array, axis: int = -1) -> Array:
    """The share of an axis that belongs to the columns of ``owner`` that are here.

    Args:
        array: the same on all devices along ``model``.
        owner: differs along ``model`` if its columns are spread there; else ``array`` is returned as it is.
        axis: of ``array``.
    """
    return _own(array, axis % array.ndim) if MODEL in axes_of(owner) else array


def whole_shape(array: Array) -> tuple[int, ...]:
    """The shape of the array with the columns of all devices."""
    *leading, columns = array.shape
    return (*leading, columns * lax.axis_size(MODEL) if MODEL in axes_of(array) else columns)


def all_columns(array: Array, axis: int = -1) -> Array:
    """The columns of all devices, the same on all; ``array`` as it is if it does not differ along ``model``."""
    if MODEL not in axes_of(array):
        return array
    return lax.all_gather(array, MODEL, axis=axis % array.ndim, tiled=True, to="invarying")


def summed(tree: Any, axis: str = MODEL) -> Any:
    """Sums over the devices along an axis of all arrays that differ there, in one message."""
    leaves, structure = jax.tree.flatten(tree)
    differ = [axis in axes_of(leaf) for leaf in leaves]
    sums = iter(lax.psum([leaf for leaf, d in zip(leaves, differ, strict=True) if d], axis) if any(differ) else [])
    return structure.unflatten([next(sums) if d else leaf for leaf, d in zip(leaves, differ, strict=True)])


def averaged(tree: Any, axis: str = DATA) -> Any:
    """Means over the devices along an axis, in one message."""

    def divide(total: Array, leaf: Array) -> Array:
        return total / lax.axis_size(axis) if axis in axes_of(leaf) else total

    return jax.tree.map(divide, summed(tree, axis), tree)


def averaged_shares(tree: Any, specs: Any) -> Any:
    """Means over the devices along ``data``; of what shall lie spread along it each device gets its own share alone.

    Args:
        tree: arrays.
        specs: the axes along which each shall lie.
    """
    leaves, structure = jax.tree.flatten(tree)
    specs = structure.flatten_up_to(specs)
    # One message for all that every device gets; a share is half of the traffic.
    whole = iter(averaged([leaf for leaf, spec in zip(leaves, specs, strict=True) if DATA not in spec]))

    def share(leaf: Array, spec: Any) -> Array:
        total = lax.psum_scatter(leaf, DATA, scatter_dimension=tuple(spec).index(DATA), tiled=True)
        return total / lax.axis_size(DATA)

    means = [share(leaf, spec) if DATA in spec else next(whole) for leaf, spec in zip(leaves, specs, strict=True)]
    return structure.unflatten(means)


# The transpose that JAX finds would place a device's share among zeros and add up those of all: twice the traffic.
@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _own(array, axis):
    size = array.shape[axis] // lax.axis_size(MODEL)
    return lax.dynamic_slice_in_dim(array, lax.axis_index(MODEL) * size, size, axis)


_own.defvjp(lambda array, axis: (_own(array, axis), None), lambda axis, _, cotangent: (all_columns(cotangent, axis),))


def look_up(table: Float[Array, "V H"], tokens: Int[Array, "*b"]) -> Float[Array, "*b H"]:
    """Rows of a table, whose rows may be spread along ``model``."""
    place, here = _words_here(table, table.shape[0], tokens)
    rows = table[place]
    return rows if here is None else summed(jnp.where(here[..., None], rows, 0.0))


@takes_explicit_axes(lambda logits, targets: spec_of(targets))
def cross_entropy(logits: Float[Array, "*b V"], targets: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """-log softmax(logits)[target] in nats, float32; the words may be spread along ``model``, and are not gathered."""
    logits = logits.astype(jnp.float32)
    maximum = lax.stop_gradient(logits.max(-1))
    if MODEL in axes_of(logits):
        maximum = lax.pmax(maximum, MODEL)
    total = summed(jnp.exp(logits - maximum[..., None]).sum(-1))
    place, here = _words_here(logits, logits.shape[-1], targets)
    chosen = jnp.take_along_axis(logits, place[..., None], axis=-1)[..., 0]
    chosen = chosen if here is None else summed(jnp.where(here, chosen, 0.0))
    return jnp.log(total) + maximum - chosen


def _words_here(array: Array, count: int, words: Int[Array, "*b"]) -> tuple[Int[Array, "*b"], Any]:
    """Places of words among the ``count`` that ``array`` has here, and which are; None for all."""
    if MODEL not in axes_of(array):
        return words, None
    place = words - lax.axis_index(MODEL) * count
    return jnp.clip(place, 0, count - 1), (place >= 0) & (place < count)
