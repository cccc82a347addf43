"""Derivatives of derivatives, against a dense product in float64 and a recurrence without a rule of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bwds import lstm
from bwds.config import ModelConfig
from bwds.model import language_model
from pallas_kernels import block_sparse_matmul, to_block_major

BLOCK = 8


def problem(rows):
    """x, w, gates; weights of first derivatives; weights of second ones. Half of the gates' first derivatives have no
    weight, so that a cotangent is zero where the gate is not."""
    rng = np.random.default_rng(rows)
    shapes = (rows, 3 * BLOCK), (3 * BLOCK, 2 * BLOCK), (rows, 3, 2)
    x, w, gates = (rng.normal(size=shape) for shape in shapes)
    first, second = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    first[2] *= rng.random(shapes[2]) < 0.5
    return (x, w, gates * (rng.random(shapes[2]) < 0.6)), first, second


def derivatives(function, weights):
    """Gradients of weighted sums of gradients, one order for each set of weights."""
    for weight in (None, *weights):
        function = jax.grad(function if weight is None else weighted(function, weight), (0, 1, 2))
    return function


def weighted(function, weights):
    return lambda *operands: sum(
        (a * w.astype(a.dtype)).sum() for a, w in zip(function(*operands), weights, strict=True)
    )


def dense(kept, x, w, gates):
    rows, r, c = kept.shape
    blocks = x.reshape(rows, r, BLOCK), w.reshape(r, BLOCK, c, BLOCK)
    return jnp.einsum("brc,brk,rkcn->bcn", jnp.where(kept, gates, 0), *blocks).reshape(rows, c * BLOCK)


@pytest.mark.parametrize("order", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("implementation", "rows", "layout"),
    [("xla", 3, "block-major"), ("xla", 20, "row-major"), ("reference", 3, "row-major"), (None, 3, "row-major")],
)
def test_of_the_product(implementation, rows, layout, order):
    operands, *weights = problem(rows)

    def product(x, w, gates):
        w = to_block_major(w, (BLOCK, BLOCK)) if layout == "block-major" else w
        return jnp.tanh(0.2 * block_sparse_matmul(x, w, gates, implementation=implementation)).sum()

    actual = jax.jit(derivatives(product, weights[: order - 1]))(*(jnp.asarray(a, jnp.float32) for a in operands))
    kept = operands[2] != 0
    with jax.enable_x64(True):
        wanted = derivatives(lambda *a: jnp.tanh(0.2 * dense(kept, *a)).sum(), weights[: order - 1])(
            *map(jnp.asarray, operands)
        )
    for name, a, b in zip(("x", "w", "gates"), actual, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max(), err_msg=name)
    assert not np.asarray(actual[2])[~kept].any()


@pytest.mark.parametrize("method", ["dynamic", "dense"])
def test_of_a_recurrence(method, monkeypatch):
    config = ModelConfig(vocab_size=9, hidden_size=16, num_layers=1, block_size=8, method=method)
    lm = language_model(config)
    params, tokens, carry = lm.init(jax.random.key(0)), jnp.arange(6, dtype=jnp.int32).reshape(2, 3), lm.init_carry(2)

    def loss(params, carry):
        logits, carry, _ = lm.apply(params, tokens, carry)
        return jax.nn.logsumexp(logits).sum() + sum((a**2).sum() for a in carry[0])

    def penalty(params, carry):
        return sum((a**2).sum() for a in jax.tree.leaves(jax.grad(loss, (0, 1))(params, carry)))

    actual = jax.jit(jax.grad(penalty, (0, 1)))(params, carry)

    def as_it_stands(options, known, params, bias, num_kept, z, carry):
        return lstm._scan(options, params, bias, num_kept if known is None else known, z, carry, save=False)[0]

    monkeypatch.setattr(lstm, "_recurrence", as_it_stands)
    wanted = jax.jit(jax.grad(lambda *a: penalty(*a), (0, 1)))(params, carry)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), actual, wanted)
