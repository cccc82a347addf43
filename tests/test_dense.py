"""The dense product of few rows on a CPU: as exact as the plain one, and no copy of the weight."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from pallas_kernels import dense
from pallas_kernels.dense import matmul

pytestmark = pytest.mark.optimized


@pytest.fixture
def all_are_large(monkeypatch) -> None:
    monkeypatch.setattr(dense, "LARGE", dict.fromkeys(dense.LARGE, 0))


@pytest.fixture(params=[1, 2, 3])
def threads(request, monkeypatch) -> int:
    monkeypatch.setattr(dense, "cores", lambda: request.param)
    return request.param


def operands(rows, k=64, n=40, dtype="bfloat16"):
    rng = np.random.default_rng([k, n])
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in ((*rows, k), (k, n)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [(), (1,), (1, 4), (2, 2), (5,), (0,)], ids=str)
@pytest.mark.parametrize("k", [64, 60, 5])
@pytest.mark.usefixtures("all_are_large", "threads")
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2, 4, 5])
@pytest.mark.usefixtures("all_are_large")
def test_few_rows_are_read_in_streams_where_that_is_faster(rows, dtype, threads):
    x, w = operands((rows,), dtype=dtype)
    streamed = rows <= 4 and (dtype == "bfloat16" or threads <= min(rows, 2))
    # A function of its own, because a trace is kept and the number of threads is no part of its key.
    traced = jax.jit(lambda x, w: matmul(x, w))
    assert ("while" in traced.lower(x, w).as_text()) == streamed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("k", [4096, 4093])
def test_no_copy_of_the_weight_is_made(k, dtype, monkeypatch):
    monkeypatch.setattr(dense, "cores", lambda: 1)
    x, w = operands((1,), k, 4096, dtype)
    loop = jax.jit(lambda x, w: jax.lax.fori_loop(0, 4, lambda _, y: y + matmul(x, w), jnp.zeros((1, 4096))))
    temporary = loop.lower(x, w).compile().memory_analysis().temp_size_in_bytes
    assert temporary < w.nbytes / 10
