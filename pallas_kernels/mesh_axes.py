"""Varying mesh axes of ``jax.shard_map``: a value's type says over which axes it varies from device to device.

Outside of ``shard_map``, and with ``check_vma=False``, no value has such axes, and these functions change nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def alike(*operands: Any) -> Any:
    """The operands, arrays or trees of them, as values that all vary over the same axes.

    A hand-written derivative rule then sees operands and cotangents of the same types. The transpose of this cast is a
    ``psum``, so the gradient of an operand that all devices share is summed over them.
    """
    axes = frozenset[str]().union(*(axes_of(leaf) for leaf in jax.tree.leaves(operands)))
    return jax.tree.map(lambda leaf: _vary(leaf, axes - axes_of(leaf)), operands)


def like(tree: Any, reference: Array) -> Any:
    """The arrays of a tree, each as a value that also varies over the axes over which the reference varies."""
    axes = axes_of(reference)
    return jax.tree.map(lambda leaf: _vary(leaf, axes - axes_of(leaf)), tree)


def zeros(shape: tuple[int, ...], operand: Array) -> Array:
    """Float32 zeros that vary over the axes over which the operand varies: the initial value of a loop over it."""
    return _vary(jnp.zeros(shape, jnp.float32), axes_of(operand))


def result(shape: tuple[int, ...], dtype: Any, operand: Array) -> jax.ShapeDtypeStruct:
    """The type of a kernel's result that varies over the axes over which the operand varies."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(operand).manual_axis_type)


def axes_of(array: Array) -> frozenset[str]:
    """The axes over which a value varies."""
    return jax.typeof(array).manual_axis_type.varying  # pyrefly: ignore[missing-attribute]


def _vary(array: Array, axes: frozenset[str]) -> Array:
    return lax.pcast(array, tuple(sorted(axes)), to="varying") if axes else array
