"""The block-sparse product as users call it: argument checks, choice of implementation, gradients.

    y[c] = sum over kept (r, c) of gates[r, c] * x[r] @ w[r, c]

(arXiv 2001.04686, section 3.) A gate of exactly zero marks an omitted block.
"""

import functools
import importlib
import math
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

IMPLEMENTATIONS = {"reference": None, "xla": None, "mosaic_tpu": "tpu", "triton": "gpu"}
"""Modules of this package, and the platform each needs, if any."""


def _choose(implementation: str | None, x, w, gates) -> ModuleType:
    """The module that is named, or the portable one. Raises ``ValueError`` where a named one cannot run."""
    name = "xla" if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation is {name!r}; it must be None or one of {', '.join(IMPLEMENTATIONS)}.")
    # Imported when it is needed: the accelerators' compilers are of no use to most.
    module = importlib.import_module(f"pallas_kernels.{name}")
    needed, here = IMPLEMENTATIONS[name], jax.default_backend()
    if needed is not None:
        if here != needed:
            raise ValueError(
                f"implementation {name!r} needs the platform {needed}, and JAX runs on {here} here; "
                "implementation='xla' runs everywhere."
            )
        module.check(x, w, gates)
    return module


def _check(x, w, gates) -> None:
    for name, array in (("x", x), ("w", w), ("gates", gates)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} has dtype {array.dtype}; it must be a floating-point array.")
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(module: ModuleType, x, w, gates):
    return module.forward(x, w, gates)


def _product_fwd(module, x, w, gates):
    return module.forward(x, w, gates), (x, w, gates)


def _product_bwd(module, residuals, dy):
    x, w, gates = residuals
    dx, dgates = module.input_gradients(x, w, gates, dy)
    return dx, module.weight_gradient(x, w, gates, dy), dgates


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

    Sums are accumulated in float32 and cast once to the dtype of ``x``. Differentiable in ``x``, ``w`` and
    ``gates``; the support of the gates is a constant of differentiation, so the gradient of an omitted gate is zero.
    Up to 16 rows (the product of the leading dimensions) a block that no row keeps is never read.

    Args:
        x: input [..., K], float32 or bfloat16.
        w: weight [K, N] in the dtype of ``x``, or block-major [C, R, K/R, N/C] (see ``to_block_major``), the layout
            in which a kept block is one contiguous read.
        gates: [..., R, C], zero where a block is omitted.
        implementation: "reference"; "xla", which None stands for; "mosaic_tpu" (TPU) or "triton" (NVIDIA GPU). A named
            one runs or raises.

    Returns:
        y [..., N] in the dtype of ``x``.

    Raises:
        ValueError: shapes or dtypes do not fit together, or the implementation is unknown.
    """
    _check(x, w, gates)
    module = _choose(implementation, x, w, gates)
    y = _jitted_product(module, _flat(x, 1), w, _flat(gates, 2))
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
    module = _choose(implementation, x, w, gates)
    dx, dgates = module.input_gradients(_flat(x, 1), w, _flat(gates, 2), _flat(dy, 1))
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
    module = _choose(implementation, x, w, gates)
    return module.weight_gradient(_flat(x, 1), w, _flat(gates, 2), _flat(dy, 1))
