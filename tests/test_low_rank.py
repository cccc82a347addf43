"""Scores of a low-rank gate: two dense products, on a GPU two kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from pallas_kernels.gated import triton_low_rank
from pallas_kernels.gated.low_rank import low_rank

# jax 0.11 and later warns wherever such a kernel is lowered; pytest resets the filter that the module sets.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
SIZES = [(1, 64, 16, 40), (3, 192, 32, 33), (4, 320, 128, 576)]
"""Rows, K, rank and n: one and several shares of K, and columns that do not fill the last program."""


def operands(rows, k, rank, n, dtype="float32"):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (rows, k), (k, rank), (rank, n)
    return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))


def wanted(x, down, up):
    """In float64 but for the rounding of the inner product."""
    inner = jnp.asarray(oracle.f64(x) @ oracle.f64(down), x.dtype)
    return oracle.f64(inner) @ oracle.f64(up)


@pytest.mark.parametrize("interpret", [True, pytest.param(False, marks=pytest.mark.gpu)], ids=["interpreted", "gpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", SIZES)
def test_the_kernels_are_the_two_products(size, dtype, interpret):
    arrays = operands(*size, dtype)
    assert triton_low_rank.takes(*arrays)
    y = triton_low_rank.low_rank(*arrays, interpret=interpret)
    assert y.dtype == jnp.float32
    expected = wanted(*arrays)
    # A sum in another order may round the inner product to its neighbour.
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(y, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    "size", [(0, 64, 16, 40), (5, 64, 16, 40), (1, 96, 16, 40), (1, 64, 24, 40), (1, 64, 8, 40), (1, 64, 512, 40)]
)
def test_what_the_kernels_do_not_take_is_done_by_two_products(size):
    arrays = operands(*size)
    assert not triton_low_rank.takes(*arrays)
    np.testing.assert_allclose(low_rank(*arrays), wanted(*arrays), rtol=1e-4, atol=1e-4)


def test_derivatives_and_vmap_are_those_of_the_products():
    arrays = operands(*SIZES[0])
    plain = lambda x, down, up: (x @ down) @ up  # noqa: E731
    cotangent = jax.random.normal(jax.random.key(3), (1, 40))
    grads = [jax.grad(lambda *a, f=f: jnp.vdot(f(*a), cotangent), (0, 1, 2))(*arrays) for f in (low_rank, plain)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *grads)
    many = jnp.stack([arrays[0], 2 * arrays[0]])
    mapped = jax.vmap(low_rank, (0, None, None))(many, *arrays[1:])
    np.testing.assert_allclose(mapped, plain(many, *arrays[1:]), rtol=1e-4, atol=1e-4)
    second = jax.hessian(lambda x: low_rank(x, *arrays[1:]).sum() ** 2)
    np.testing.assert_allclose(
        second(arrays[0]), jax.hessian(lambda x: plain(x, *arrays[1:]).sum() ** 2)(arrays[0]), rtol=1e-3, atol=1e-2
    )
