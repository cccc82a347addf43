"""Problems for the block-sparse product, and what the float64 oracle says of them, for the tests of every kernel."""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import from_block_major, to_block_major
from pallas_kernels.block_sparse import reference
from tests import oracle

NAMES = ("y", "dx", "dw", "dgates")


class Problem(NamedTuple):
    """x [B, K], w [K, N], gates [B, R, C] and the cotangent dy [B, N]."""

    x: jax.Array
    w: jax.Array
    gates: jax.Array
    dy: jax.Array

    @property
    def block(self) -> tuple[int, int]:
        return self.w.shape[0] // self.gates.shape[-2], self.w.shape[1] // self.gates.shape[-1]


def problem(
    rows: int,
    *,
    grid: tuple[int, int] = (3, 4),
    block: tuple[int, int] = (128, 128),
    dtype: str = "float32",
    density: float = 0.4,
) -> Problem:
    """Gates of both signs with an empty column, a full one, an empty row of blocks in the others, an empty example.

    Every weight of a block that no row keeps is NaN.
    """
    (r, c), (bk, bn) = grid, block
    rng = np.random.default_rng([rows, r, c])
    gates = rng.normal(size=(rows, r, c)) * (rng.random((rows, r, c)) < density)
    gates[:, 1] = gates[:, :, 0] = 0
    gates[:, :, 1] = rng.normal(size=(rows, r))
    if rows > 1:
        gates[0] = 0
    kept = (gates != 0).any(0)
    w = np.where(np.repeat(np.repeat(kept, bk, 0), bn, 1), rng.normal(size=(r * bk, c * bn)), np.nan)
    assert kept.any()
    assert not kept.all()
    return Problem(
        jnp.asarray(rng.normal(size=(rows, r * bk)), dtype),
        jnp.asarray(w, dtype),
        jnp.asarray(gates, jnp.float32),
        jnp.asarray(rng.normal(size=(rows, c * bn)), dtype),
    )


def without_nan(p: Problem) -> Problem:
    return p._replace(w=jnp.nan_to_num(p.w))


def run(p: Problem, module: ModuleType, *, layout: str = "row-major", **options: Any) -> tuple[jax.Array, ...]:
    """(y, dx, dw, dgates), each by its own compiled function; dw row-major."""
    w = to_block_major(p.w, p.block) if layout == "block-major" else p.w
    # Compiled anew: what a kernel plans may have been changed since it was last traced.
    forward, input_gradients, weight_gradient = (
        jax.jit(functools.partial(f, **options))
        for f in (module.forward, module.input_gradients, module.weight_gradient)
    )
    y, (dx, dgates), dw = forward(p.x, w, p.gates), input_gradients(*p._replace(w=w)), weight_gradient(*p._replace(w=w))
    assert (y.dtype, dx.dtype, dw.dtype, dgates.dtype) == (p.x.dtype, p.x.dtype, p.w.dtype, p.gates.dtype)
    assert (y.shape, dx.shape, dw.shape, dgates.shape) == (p.dy.shape, p.x.shape, w.shape, p.gates.shape)
    return y, dx, from_block_major(dw) if layout == "block-major" else dw, dgates


def expected(p: Problem) -> tuple[np.ndarray, ...]:
    """The oracle's (y, dx, dw, dgates)."""
    return oracle.matmul(p.x, p.w, p.gates), *oracle.matmul_gradients(p.x, p.w, p.gates, p.dy)


def assert_matches(p: Problem, actual: tuple[jax.Array, ...], tolerance: float = 2e-5) -> None:
    """Float32 results within rounding of float64, bfloat16 ones as near as those of the reference; zeros exact.

    Args:
        p: the problem.
        actual: (y, dx, dw, dgates).
        tolerance: relative to the largest entry, for products of float32.
    """
    wanted = expected(p)
    rounded = run(without_nan(p), reference) if p.x.dtype == jnp.bfloat16 else wanted
    for name, a, b, c in zip(NAMES, actual, wanted, rounded, strict=True):
        error, allowed = (np.abs(oracle.f64(v) - b).max() for v in (a, c))
        assert error <= 1.5 * allowed + tolerance * np.abs(b).max(), name
    y, _, dw, dgates = actual
    assert not np.any(oracle.f64(dgates)[oracle.f64(p.gates) == 0])
    assert not np.any(oracle.f64(dw)[np.isnan(oracle.f64(p.w))])
    assert not np.any(oracle.f64(y)[:, : p.block[1]])
