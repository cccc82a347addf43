"""The product and its gradients on each platform, with their vmap and with derivatives of every order.

All three are derivatives of one function that is linear in each operand, T = sum(dy * y):

    y = dT/d(dy)        dx, dgates = dT/dx, dT/d(gates)        dw = dT/dw

so the derivatives of each are again these three, with other operands. The support of the gates is constant. In a
derivative, a cotangent may take the place of the gates. It can be zero by chance where a gate is not, so it comes with
the ``support`` of the gates themselves; None: where ``gates`` are not zero.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.platforms import kernel_on
from pallas_kernels.sizes import is_known

Modules = tuple[tuple[str, ModuleType], ...]
"""Pairs (platform, module); the platform "default" stands for all that are not named, and comes last."""


@functools.cache
def _operation(name: str, modules: Modules) -> Callable[..., Any]:
    """``forward``, ``input_gradients`` or ``weight_gradient`` of (x, w, gates[, dy]), by platform and with a vmap.

    The platform is the one of the lowering, so a program exported for another machine holds that machine's kernel.
    """

    @jax.custom_batching.custom_vmap
    def operation(*arrays):
        functions = {platform: getattr(module, name) for platform, module in modules}
        default, out = functions.pop("default", None), _types(name, *arrays)
        if default is None:
            ((platform, function),) = functions.items()
            return kernel_on(platform, function, out, is_branch=False)(*arrays)
        # A kernel was chosen for the rows without vmap; vmap may have added a number of examples that is not known.
        if not functions or not is_known(*arrays[0].shape):
            return default(*arrays)
        kernels = {platform: kernel_on(platform, function, out) for platform, function in functions.items()}
        return lax.platform_dependent(*arrays, **kernels, default=default)

    @operation.def_vmap
    def _(size, batched, *arrays):
        if batched[1] or name == "weight_gradient":
            # Every example has a weight, or a gradient of it, of its own: the examples run one after the other.
            mapped = [array for array, is_mapped in zip(arrays, batched, strict=True) if is_mapped]

            def one(mapped):
                mapped = iter(mapped)
                return operation(*(next(mapped) if m else a for a, m in zip(arrays, batched, strict=True)))

            out = lax.map(one, mapped)
        else:
            # Examples become rows, so that all of them share every read of the weight.
            rows = [a if m else jnp.broadcast_to(a, (size, *a.shape)) for a, m in zip(arrays, batched, strict=True)]
            flat = [array.reshape(size * array.shape[1], *array.shape[2:]) for array in rows]
            flat[1] = arrays[1]
            shape = size, rows[0].shape[1]
            out = jax.tree.map(lambda array: array.reshape(*shape, *array.shape[1:]), operation(*flat))
        return out, jax.tree.map(lambda _: True, out)

    return operation


def _types(name: str, x, w, gates, dy=None) -> Any:
    """Shapes and dtypes of the results of an operation."""
    if name == "forward":
        columns = w.shape[1] if w.ndim == 2 else w.shape[0] * w.shape[3]
        return jax.ShapeDtypeStruct((x.shape[0], columns), x.dtype)
    if name == "input_gradients":
        return jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(gates.shape, gates.dtype)
    return jax.ShapeDtypeStruct(w.shape, w.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(modules: Modules, x, w, gates, support=None):
    return _operation("forward", modules)(x, w, gates)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def input_gradients(modules: Modules, x, w, gates, dy, support=None):
    operation = _operation("input_gradients", modules)
    dx, dgates = operation(x, w, gates, dy)
    if support is not None:
        _, dgates = operation(x, w, support.astype(gates.dtype), dy)
    return dx, dgates


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def weight_gradient(modules: Modules, x, w, gates, dy, support=None):
    return _operation("weight_gradient", modules)(x, w, gates, dy)


def _product_bwd(modules, operands, dy):
    x, w, gates, support = operands
    dx, dgates = input_gradients(modules, x, w, gates, dy, support)
    return dx, weight_gradient(modules, x, w, gates, dy, support), dgates, None


def _input_gradients_bwd(modules, operands, cotangents):
    x, w, gates, dy, support = operands
    for_dx, for_dgates = cotangents
    kept = gates != 0 if support is None else support
    # sum(for_dx * dx) is T with for_dx in place of x, and sum(for_dgates * dgates) is T with for_dgates for gates.
    other = jnp.where(kept, for_dgates, 0)
    dx, _ = input_gradients(modules, x, w, other, dy, kept)
    _, dgates = input_gradients(modules, for_dx, w, gates, dy, support)
    dw = weight_gradient(modules, for_dx, w, gates, dy, support) + weight_gradient(modules, x, w, other, dy, kept)
    ddy = product(modules, for_dx, w, gates, support) + product(modules, x, w, other, kept)
    return dx, dw, dgates, ddy.astype(dy.dtype), None


def _weight_gradient_bwd(modules, operands, for_dw):
    x, _, gates, dy, support = operands
    dx, dgates = input_gradients(modules, x, for_dw, gates, dy, support)
    return dx, None, dgates, product(modules, x, for_dw, gates, support).astype(dy.dtype), None


def _keeping_operands(function):
    return lambda modules, *operands: (function(modules, *operands), operands)


product.defvjp(_keeping_operands(product), _product_bwd)
input_gradients.defvjp(_keeping_operands(input_gradients), _input_gradients_bwd)
weight_gradient.defvjp(_keeping_operands(weight_gradient), _weight_gradient_bwd)
