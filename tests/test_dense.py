"""The dense product of few bfloat16 rows on a CPU: as exact as the plain one, and no copy of the weight."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from pallas_kernels import dense
from pallas_kernels.dense import matmul

pytestmark = pytest.mark.optimized


@pytest.fixture
def nothing_is_small(monkeypatch) -> None:
    monkeypatch.setattr(dense, "SMALL", 0)


def operands(rows, k=64, n=40, dtype="bfloat16"):
    rng = np.random.default_rng([k, n])
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in ((*rows, k), (k, n)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [(), (1,), (1, 4), (2, 2), (5,), (0,)], ids=str)
@pytest.mark.parametrize("k", [64, 60])
@pytest.mark.usefixtures("nothing_is_small")
def test_value_and_gradients(rows, k, dtype):
    x, w = operands(rows, k, dtype=dtype)
    y, pull = jax.vjp(matmul, x, w)
    assert y.dtype == jnp.float32
    a, b = oracle.f64(x), oracle.f64(w)
    np.testing.assert_allclose(y, a @ b, atol=1e-4)
    cotangent = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), jnp.float32)
    dx, dw = pull(cotangent)
    c = oracle.f64(cotangent)
    limit = {"float32": 1e-5, "bfloat16": 2**-8}[dtype]
    for actual, wanted in ((dx, c @ b.T), (dw, a.reshape(-1, k).T @ c.reshape(-1, c.shape[-1]))):
        assert actual.dtype == x.dtype
        np.testing.assert_allclose(oracle.f64(actual), wanted, atol=limit * max(1, np.abs(wanted).max(initial=0)))


def test_no_copy_of_the_weight_is_made():
    x, w = operands((1,), 1024, 4096)
    loop = jax.jit(lambda x, w: jax.lax.fori_loop(0, 4, lambda _, y: y + matmul(x, w), jnp.zeros((1, 4096))))
    temporary = loop.lower(x, w).compile().memory_analysis().temp_size_in_bytes
    assert temporary < w.nbytes / 10
