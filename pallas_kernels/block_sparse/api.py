"""The block-sparse product as users call it: argument checks, choice of implementation, gradients.

    y[c] = sum over kept (r, c) of gates[r, c] * x[r] @ w[r, c]

(arXiv 2001.04686, section 3.) A gate of exactly zero marks an omitted block.
"""

import importlib
import math
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.block_sparse import vjp
from pallas_kernels.block_sparse.vjp import Modules
from pallas_kernels.explicit_axes import rows_as, spec_of, takes_explicit_axes
from pallas_kernels.mesh_axes import alike

PLATFORMS = {"reference": None, "xla": None, "mosaic_tpu": "tpu", "triton": "cuda"}
"""The platform of each implementation, which is a module of this package; None: every platform."""


def _module(name: str) -> ModuleType:
    # The import waits until the module is needed, because a named implementation needs no other.
    return importlib.import_module(f"pallas_kernels.block_sparse.{name}")


def _suited(name: str, x, w, gates) -> ModuleType | None:
    """The module; None if it refuses these arguments or this jax has no such compiler."""
    try:
        module = _module(name)
        module.check(x, w, gates)
    except (ValueError, ImportError):
        return None
    return module


def _choose(implementation: str | None, x, w, gates) -> Modules:
    """The named module, or for each platform the best one that takes these arguments.

    Raises ``ValueError`` where a named one cannot run.
    """
    # The modules get arrays with one leading dimension, so their checks do too.
    x, gates = _flat(x, 1), _flat(gates, 2)
    if implementation is None:
        kernels = ((platform, _suited(name, x, w, gates)) for name, platform in PLATFORMS.items() if platform)
        return (*((platform, module) for platform, module in kernels if module), ("default", _module("xla")))
    if implementation not in PLATFORMS:
        raise ValueError(f"implementation is {implementation!r}; it must be None or one of {', '.join(PLATFORMS)}.")
    platform = PLATFORMS[implementation]
    try:
        module = _module(implementation)
    except ImportError as error:
        raise ValueError(
            f"implementation {implementation!r} needs a compiler that jax {jax.__version__} has not here ({error}); "
            "implementation='xla' runs everywhere."
        ) from error
    if platform is None:
        return (("default", module),)
    needed, here = "gpu" if platform == "cuda" else platform, jax.default_backend()
    if here != needed:
        raise ValueError(
            f"implementation {implementation!r} needs the platform {needed}, and JAX runs on {here} here; "
            "implementation='xla' runs everywhere."
        )
    module.check(x, w, gates)
    return ((platform, module),)


def _check(x, w, gates) -> None:
    for name, array in (("x", x), ("w", w), ("gates", gates)):
        if not hasattr(array, "dtype"):
            raise ValueError(f"{name} is a {type(array).__name__}; it must be an array.")
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


# Without this jit, a call outside of any other jit would compile its loops every time.
_jitted_product = jax.jit(vjp.product, static_argnums=0)


def _flat(array, trailing: int):
    """``array`` with all dimensions but the ``trailing`` last ones joined into one."""
    leading = array.shape[: array.ndim - trailing]
    return array.reshape(math.prod(leading), *array.shape[len(leading) :])


def _columns(w) -> Any:
    """The mesh axes that block columns are sharded over."""
    return tuple(spec_of(w))[0 if w.ndim == 4 else -1] if w.ndim else None


@takes_explicit_axes(lambda x, w, gates, **_: rows_as(x, _columns(w)))
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

    Differentiable in ``x``, ``w`` and ``gates``, in reverse mode and at every order. The support of the gates is a
    constant of differentiation, so the gradient of an omitted gate is zero. There is no forward mode: for a Hessian,
    apply ``jax.jacrev`` twice.

    With up to 16 rows, a block that no row keeps is not read, except where blocks are small and a CPU is faster with
    all of them; even there its values never matter. The number of rows is the product of the leading dimensions, times
    the number of examples under a ``vmap`` with one weight for all.

    The platform is the one that a program is lowered for; ``jax.export`` takes one or several. An export for "cuda"
    needs ``disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]``, because nobody
    promises that a later XLA still reads such a kernel. From jax 0.12 on, an export on a machine without a GPU also
    needs ``jax.sharding.use_abstract_mesh`` with an abstract device of the right kind. Leading dimensions may be
    symbols of ``jax.export``. Kernels need numbers, so a program with symbols takes "xla", and reads every block unless
    a constraint says that there are at most 16 rows. Writing an exported program to a file needs flatbuffers, which the
    extra ``export`` installs.

    The arrays may lie on a mesh whose axes have type Auto or Explicit. The rows of y are sharded as those of ``x``, its
    columns as those of ``w``.

    Example:
        ```python
        x, w = jnp.ones((3, 256)), jnp.ones((256, 512))
        gates = jnp.zeros((3, 4, 8)).at[:, :, :2].set(1.0)         # 4 x 8 blocks of 64 x 64; two block columns are kept
        y = block_sparse_matmul(x, w, gates)                       # [3, 512], zero from column 128 on
        ```

    Args:
        x: input [..., K], float32 or bfloat16.
        w: weight [K, N] in the dtype of ``x``, or block-major [C, R, K/R, N/C] (see ``to_block_major``), the layout
            in which a kept block is one contiguous read.
        gates: [..., R, C], any floating-point dtype, zero where a block is omitted.
        implementation: "reference", "xla", "mosaic_tpu" (TPU) or "triton" (NVIDIA GPU): it runs or raises. None: the
            platform's kernel if that takes these arguments, otherwise "xla".

    Returns:
        y [..., N] in the dtype of ``x``.

    Raises:
        ValueError: shapes or dtypes do not fit together, or the implementation is unknown or cannot run here.
    """
    _check(x, w, gates)
    modules = _choose(implementation, x, w, gates)
    y = _jitted_product(modules, *alike(_flat(x, 1), w, _flat(gates, 2)))
    return y.reshape(*x.shape[:-1], y.shape[-1])


@takes_explicit_axes(lambda x, w, gates, dy, **_: (spec_of(x), spec_of(gates)))
def block_sparse_input_gradients(
    x: Float[Array, "*b K"],
    w: Float[Array, "..."],
    gates: Float[Array, "*b R C"],
    dy: Float[Array, "*b N"],
    *,
    implementation: str | None = None,
) -> tuple[Float[Array, "*b K"], Float[Array, "*b R C"]]:
    """Cotangents of ``x`` and ``gates`` alone: what a recurrent backward pass needs at every step.

        q = dy[c] @ w[r, c]^T        dx[r] = sum over c of gates[r, c] * q        dgates[r, c] = <x[r], q>

    Shapes and dtypes are not checked: they must be those of a ``block_sparse_matmul`` that runs.

    Example:
        ```python
        x, w, dy = jnp.ones((3, 256)), jnp.ones((256, 512)), jnp.ones((3, 512))
        gates = jnp.ones((3, 4, 8))                                             # of blocks of 64 x 64
        dx, dgates = block_sparse_input_gradients(x, w, gates, dy)              # [3, 256], [3, 4, 8]
        ```

    Args:
        x: input [..., K], float32 or bfloat16.
        w: weight [K, N] or block-major [C, R, K/R, N/C], in the dtype of ``x``.
        gates: [..., R, C], zero where a block is omitted.
        dy: cotangent of y, [..., N], in the dtype of ``x``.
        implementation: as in ``block_sparse_matmul``.

    Returns:
        dx [..., K] in the dtype of ``x``, and dgates [..., R, C] in the dtype of ``gates``, zero for an omitted block.

    Raises:
        ValueError: the implementation is unknown or cannot run here.
    """
    modules = _choose(implementation, x, w, gates)
    dx, dgates = vjp.input_gradients(modules, *alike(_flat(x, 1), w, _flat(gates, 2), _flat(dy, 1)))
    return dx.reshape(x.shape), dgates.reshape(gates.shape)


@takes_explicit_axes(lambda x, w, gates, dy, **_: spec_of(w))
def block_sparse_weight_gradient(
    x: Float[Array, "*b K"],
    w: Float[Array, "..."],
    gates: Float[Array, "*b R C"],
    dy: Float[Array, "*b N"],
    *,
    implementation: str | None = None,
) -> Float[Array, "..."]:
    """Cotangent of ``w`` alone, summed over all leading dimensions: once after a recurrent backward pass.

        dw[r, c] = sum over rows of gates[r, c] * x[r]^T dy[c]

    Only the shape, layout and dtype of ``w`` matter, not its values. Shapes and dtypes are not checked: they must be
    those of a ``block_sparse_matmul`` that runs.

    Example:
        ```python
        x, w, dy = jnp.ones((3, 256)), jnp.ones((256, 512)), jnp.ones((3, 512))
        gates = jnp.ones((3, 4, 8))                                             # of blocks of 64 x 64
        dw = block_sparse_weight_gradient(x, w, gates, dy)                      # [256, 512]
        ```

    Args:
        x: input [..., K], float32 or bfloat16.
        w: weight [K, N] or block-major [C, R, K/R, N/C], in the dtype of ``x``.
        gates: [..., R, C], zero where a block is omitted.
        dy: cotangent of y, [..., N], in the dtype of ``x``.
        implementation: as in ``block_sparse_matmul``.

    Returns:
        dw in the shape, layout and dtype of ``w``, zero in a block that no row keeps.

    Raises:
        ValueError: the implementation is unknown or cannot run here.
    """
    modules = _choose(implementation, x, w, gates)
    return vjp.weight_gradient(modules, *alike(_flat(x, 1), w, _flat(gates, 2), _flat(dy, 1)))
