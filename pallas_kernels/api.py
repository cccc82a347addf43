"""The block-sparse product as users call it: argument checks, choice of implementation, gradients.

    y[c] = sum over kept (r, c) of gates[r, c] * x[r] @ w[r, c]

(arXiv 2001.04686, section 3.) A gate of exactly zero marks an omitted block.
"""

import functools
import importlib
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.mesh_axes import alike

PLATFORMS = {"reference": None, "xla": None, "mosaic_tpu": "tpu", "triton": "cuda"}
"""Modules of this package, and the platform each is for; None: all of them."""

Modules = tuple[tuple[str, ModuleType], ...]
"""What runs where: (platform, module), the last one for every other platform under the name "default"."""


def _module(name: str) -> ModuleType:
    # Imported when it is needed: a named implementation needs no other.
    return importlib.import_module(f"pallas_kernels.{name}")


def _suited(name: str, x, w, gates) -> ModuleType | None:
    """The module, unless it refuses these arguments or this jax has no such compiler."""
    try:
        module = _module(name)
        module.check(x, w, gates)
    except (ValueError, ImportError):
        return None
    return module


def _choose(implementation: str | None, x, w, gates) -> Modules:
    """The module that is named, or for each platform the best that takes these arguments.

    Raises ``ValueError`` where a named one cannot run.
    """
    # As the modules get them: with one leading dimension.
    x, gates = _flat(x, 1), _flat(gates, 2)
    if implementation is None:
        kernels = ((platform, _suited(name, x, w, gates)) for name, platform in PLATFORMS.items() if platform)
        return (*((platform, module) for platform, module in kernels if module), ("default", _module("xla")))
    if implementation not in PLATFORMS:
        raise ValueError(f"implementation is {implementation!r}; it must be None or one of {', '.join(PLATFORMS)}.")
    module, needed = _module(implementation), PLATFORMS[implementation]
    if needed is not None:
        needed, here = "gpu" if needed == "cuda" else needed, jax.default_backend()
        if here != needed:
            raise ValueError(
                f"implementation {implementation!r} needs the platform {needed}, and JAX runs on {here} here; "
                "implementation='xla' runs everywhere (of a command: --model.implementation xla)."
            )
        module.check(x, w, gates)
    return (("default", module),)


def _check(x, w, gates) -> None:
    for name, array in (("x", x), ("w", w)):
        if array.dtype not in (jnp.float32, jnp.bfloat16):
            raise ValueError(f"{name} has dtype {array.dtype}; it must be float32 or bfloat16: cast it.")
    if not jnp.issubdtype(gates.dtype, jnp.floating):
        raise ValueError(f"gates have dtype {gates.dtype}; they must be floating-point numbers.")
    if x.dtype != w.dtype:
        raise ValueError(f"x has dtype {x.dtype} and w has dtype {w.dtype}; cast one of them to the other's.")
    if x.ndim < 1:
        raise ValueError("x is a scalar; it must have shape [..., K].")
    if gates.ndim != x.ndim + 1 or gates.shape[:-2] != x.shape[:-1]:
        raise ValueError(
            f"gates have shape {gates.shape} and x has shape {x.shape}; "
            "for x [..., K] the gates must be [..., R, C] with the same leading dimensions."
        )
    *_, r, c = gates.shape
    if r < 1 or c < 1:
        raise ValueError(f"gates have shape {gates.shape}; a matrix has at least one row block and one column block.")
    if w.ndim == 2:
        if w.shape[0] != x.shape[-1]:
            raise ValueError(f"x has {x.shape[-1]} features and w has shape {w.shape}; its first dimension must match.")
        if w.shape[0] % r or w.shape[1] % c:
            raise ValueError(f"gates of {r} x {c} blocks do not divide w of shape {w.shape} evenly.")
    elif w.ndim == 4:
        if w.shape[:2] != (c, r):
            raise ValueError(
                f"block-major w has shape {w.shape} and gates have {r} x {c} blocks; w must be [C, R, K/R, N/C]."
            )
        if r * w.shape[2] != x.shape[-1]:
            raise ValueError(
                f"x has {x.shape[-1]} features and block-major w of shape {w.shape} takes {r * w.shape[2]}."
            )
    else:
        raise ValueError(f"w has shape {w.shape}; it must be [K, N], or block-major [C, R, K/R, N/C].")


@functools.cache
def _operation(name: str, modules: Modules) -> Callable[..., Any]:
    """``forward``, ``input_gradients`` or ``weight_gradient`` of (x, w, gates[, dy]), by platform and with a vmap.

    The platform is that of the lowering, so a program exported for another machine holds the kernel of that one.
    """

    @jax.custom_batching.custom_vmap
    def operation(*arrays):
        functions = {platform: getattr(module, name) for platform, module in modules}
        if len(functions) == 1:
            return functions["default"](*arrays)
        return lax.platform_dependent(*arrays, **functions)

    @operation.def_vmap
    def _(size, batched, *arrays):
        if batched[1] or name == "weight_gradient":
            # A weight, or its gradient, for every example: one after the other.
            mapped = [array for array, is_mapped in zip(arrays, batched, strict=True) if is_mapped]

            def one(mapped):
                mapped = iter(mapped)
                return operation(*(next(mapped) if m else a for a, m in zip(arrays, batched, strict=True)))

            out = lax.map(one, mapped)
        else:
            # Examples are rows, and share every read of the weight.
            rows = [a if m else jnp.broadcast_to(a, (size, *a.shape)) for a, m in zip(arrays, batched, strict=True)]
            flat = [array.reshape(-1, *array.shape[2:]) for array in rows]
            flat[1] = arrays[1]
            out = jax.tree.map(lambda array: array.reshape(size, -1, *array.shape[1:]), operation(*flat))
        return out, jax.tree.map(lambda _: True, out)

    return operation


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(modules: Modules, x, w, gates):
    return _operation("forward", modules)(x, w, gates)


def _product_fwd(modules, x, w, gates):
    return _product(modules, x, w, gates), (x, w, gates)


def _product_bwd(modules, residuals, dy):
    dx, dgates = _operation("input_gradients", modules)(*residuals, dy)
    dw = _operation("weight_gradient", modules)(*residuals, dy)
    return dx, dw, dgates


_product.defvjp(_product_fwd, _product_bwd)
# A call outside of any jit compiles its loops once, not every time.
_jitted_product = jax.jit(_product, static_argnums=0)


def _flat(array, trailing: int):
    """One leading dimension for all of them."""
    leading = array.shape[: array.ndim - trailing]
    return array.reshape(math.prod(leading), *array.shape[len(leading) :])


def block_sparse_matmul(
    x: Float[Array, "*b K"],
    w: Float[Array, "..."],
    gates: Float[Array, "*b R C"],
    *,
    implementation: str | None = None,
) -> Float[Array, "*b N"]:
    """Product of ``x`` and the blocks of ``w`` that ``gates`` keep, each block scaled by its gate.

    Sums are accumulated in float32 and cast once to the dtype of ``x``. Products of float32 are as exact as those of
    a dense product on the same platform: ``jax_default_matmul_precision`` says how exact.

    Differentiable in ``x``, ``w`` and ``gates``; the support of the gates is a constant of differentiation, so the
    gradient of an omitted gate is zero. Up to 16 rows (the product of the leading dimensions and, under ``vmap`` with
    one weight for all, the number of examples) a block that no row keeps is never read.

    The platform is the one that a program is lowered for. JAX lowers no Pallas kernel for several platforms at once:
    take one platform for each ``jax.export``, or "xla", which is the same for all. For "cuda" ``jax.export`` asks for
    ``disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]``, as nobody promises that
    a later XLA still reads such a kernel.

    Args:
        x: input [..., K], float32 or bfloat16.
        w: weight [K, N] in the dtype of ``x``, or block-major [C, R, K/R, N/C] (see ``to_block_major``), the layout
            in which a kept block is one contiguous read.
        gates: [..., R, C], zero where a block is omitted.
        implementation: "reference", "xla", "mosaic_tpu" (TPU) or "triton" (NVIDIA GPU): it runs or raises. None: on
            each platform its kernel where that takes these arguments, otherwise "xla".

    Returns:
        y [..., N] in the dtype of ``x``.

    Raises:
        ValueError: shapes or dtypes do not fit together, or the implementation is unknown or cannot run here.
    """
    _check(x, w, gates)
    modules = _choose(implementation, x, w, gates)
    y = _jitted_product(modules, *alike(_flat(x, 1), w, _flat(gates, 2)))
    return y.reshape(*x.shape[:-1], y.shape[-1])


def block_sparse_input_gradients(
    x: Float[Array, "*b K"],
    w: Float[Array, "..."],
    gates: Float[Array, "*b R C"],
    dy: Float[Array, "*b N"],
    *,
    implementation: str | None = None,
) -> tuple[Float[Array, "*b K"], Float[Array, "*b R C"]]:
    """Cotangents of ``x`` and ``gates`` alone: what a recurrent backward pass needs at every step."""
    operation = _operation("input_gradients", _choose(implementation, x, w, gates))
    dx, dgates = operation(*alike(_flat(x, 1), w, _flat(gates, 2), _flat(dy, 1)))
    return dx.reshape(x.shape), dgates.reshape(gates.shape)


def block_sparse_weight_gradient(
    x: Float[Array, "*b K"],
    w: Float[Array, "..."],
    gates: Float[Array, "*b R C"],
    dy: Float[Array, "*b N"],
    *,
    implementation: str | None = None,
) -> Float[Array, "..."]:
    """Cotangent of ``w`` alone, summed over all leading dimensions: once after a recurrent backward pass.

    Of ``w`` only shape, layout and dtype matter.
    """
    operation = _operation("weight_gradient", _choose(implementation, x, w, gates))
    return operation(*alike(_flat(x, 1), w, _flat(gates, 2), _flat(dy, 1)))
