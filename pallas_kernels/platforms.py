"""A kernel of one platform in a program that may be lowered for another.

``lax.platform_dependent`` traces the branches of all platforms. A program exported for several platforms at once lowers
every branch for each of them, which Pallas refuses. So a kernel is a primitive here, and only its types are known
before lowering. It is traced only when a program is lowered for its own platform, so an error in a kernel, or a change
of Pallas in another jax, cannot break programs for other platforms.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir

from pallas_kernels.mesh_axes import like

PLATFORMS = ("cuda", "tpu")


def kernel_on(platform: str, function: Callable[..., Any], out: Any, *, is_branch: bool = True) -> Callable[..., Any]:
    """``function``, traced only where a program is lowered for ``platform``.

    Args:
        platform: one of ``PLATFORMS``.
        function: takes and returns arrays. Its caller supplies the rules for derivatives and for vmap.
        out: shapes and dtypes of its results, a tree of ``jax.ShapeDtypeStruct``. The results vary over the mesh axes
            over which the first operand varies.
        is_branch: whether it stands in a branch that programs for other platforms contain but never take. If not,
            lowering for another platform is an error.
    """

    def call(*operands):
        def zeros():
            return like(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), out), operands[0])

        types = tuple(jax.make_jaxpr(zeros)().out_avals)
        results = _kernel.bind(*operands, function=function, types=types, platform=platform, is_branch=is_branch)
        return jax.tree.structure(out).unflatten(results)

    return call


_kernel = Primitive("kernel")
_kernel.multiple_results = True


@_kernel.def_impl
def _(*operands, function, types, platform, is_branch):
    del types, platform, is_branch
    return jax.tree.leaves(function(*operands))


@_kernel.def_abstract_eval
def _(*operands, function, types, platform, is_branch):
    del operands, function, platform, is_branch
    return list(types)


def _lowered(here, *operands, function, types, platform, is_branch):
    if platform == here:
        return jax.tree.leaves(function(*operands))
    if is_branch:
        return [jnp.zeros(leaf.shape, leaf.dtype) for leaf in types]
    raise ValueError(
        f"This program is lowered for {here or 'a platform without kernels'}, and names a kernel for {platform}; "
        "export it for that platform alone, or use implementation=None or 'xla'."
    )


for _platform in (*PLATFORMS, None):
    _rule = mlir.lower_fun(functools.partial(_lowered, _platform), multiple_results=True)
    mlir.register_lowering(_kernel, _rule, platform=_platform)
