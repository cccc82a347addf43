"""Mesh axes of ``jax.shard_map``: along which of them a value differs from device to device is part of its type.

Outside of ``shard_map``, and with ``check_vma=False``, no value has such axes and these functions change nothing.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array


def alike(*operands: Any) -> Any:
    """The operands, arrays or trees of them, as values that all differ along the same axes.

    A rule for derivatives written by hand then sees operands and cotangents of the same types; that the gradient of an
    operand shared by all devices is a sum over them follows from this cast, whose transpose is the sum.
    """
    axes = frozenset[str]().union(*(axes_of(leaf) for leaf in jax.tree.leaves(operands)))
    return jax.tree.map(lambda leaf: _vary(leaf, axes - axes_of(leaf)), operands)


def like(tree: Any, reference: Array) -> Any:
    """The arrays of a tree, each as a value that differs also along the axes along which the reference does."""
    axes = axes_of(reference)
    return jax.tree.map(lambda leaf: _vary(leaf, axes - axes_of(leaf)), tree)


def zeros(shape: tuple[int, ...], operand: Array) -> Array:
    """Float32 zeros that differ along the axes along which the operand does: what a loop over it starts with."""
    return _vary(jnp.zeros(shape, jnp.float32), axes_of(operand))


def result(shape: tuple[int, ...], dtype: Any, operand: Array) -> jax.ShapeDtypeStruct:
    """The type of a kernel's result that differs along the axes along which the operand does."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(operand).manual_axis_type)


def axes_of(array: Array) -> frozenset[str]:
    """The axes along which a value differs."""
    return jax.typeof(array).manual_axis_type.varying  # pyrefly: ignore[missing-attribute]


def _vary(array: Array, axes: frozenset[str]) -> Array:
    return lax.pcast(array, tuple(sorted(axes)), to="varying") if axes else array
