"""``jax.export``: programs for any batch and length, for several platforms at once, and what is written to a file."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from bwds.config import ModelConfig
from bwds.model import Info, decode_params, language_model
from bwds.selection import topk_gates
from pallas_kernels import block_sparse_matmul

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="exports for a CPU"),
]
f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


def again(function, *arguments):
    """The function as exported for such arguments, written and read."""
    return jax.export.deserialize(jax.export.export(jax.jit(function), platforms=["cpu"])(*arguments).serialize()).call


def rows(number):
    rng = np.random.default_rng(number)
    gates = rng.normal(size=(number, 2, 2)) * (rng.random((number, 2, 2)) < 0.5)
    return [jnp.asarray(a, jnp.float32) for a in (rng.normal(size=(number, 16)), rng.normal(size=(16, 16)), gates)]


@pytest.mark.parametrize("implementation", ["xla", None])
@pytest.mark.parametrize(
    ("constraint", "numbers"), [((), (1, 17, 300)), (("b <= 16",), (1, 16)), (("b >= 17",), (17,))]
)
def test_one_program_for_any_number_of_rows(implementation, constraint, numbers):
    (b,) = jax.export.symbolic_shape("b", constraints=constraint)

    def value_and_gradients(x, w, gates):
        y, pull = jax.vjp(functools.partial(block_sparse_matmul, implementation=implementation), x, w, gates)
        return y, *pull(y)

    program = again(value_and_gradients, f32((b, 16)), f32((16, 16)), f32((b, 2, 2)))
    for number in numbers:
        operands = rows(number)
        y, *gradients = program(*operands)
        wanted = oracle.matmul(*operands)
        np.testing.assert_allclose(y, wanted, atol=1e-4)
        for actual, gradient in zip(gradients, oracle.matmul_gradients(*operands, wanted), strict=True):
            np.testing.assert_allclose(actual, gradient, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("number", [3, 20])
def test_one_program_for_blocks_of_any_size(number):
    m, n = jax.export.symbolic_shape("m,n")
    program = again(block_sparse_matmul, f32((number, 2 * m)), f32((2 * m, 2 * n)), f32((number, 2, 2)))
    operands = rows(number)
    np.testing.assert_allclose(program(*operands), oracle.matmul(*operands), atol=1e-4)


def test_gates_and_mapped_rows_of_any_number():
    b, t = jax.export.symbolic_shape("b,t")
    one = lambda x, w, scores: block_sparse_matmul(x, w, topk_gates(scores, sparsity=0.5))  # noqa: E731
    function = jax.vmap(one, (0, None, 0))
    program = again(function, f32((b, t, 16)), f32((16, 16)), f32((b, t, 2, 2)))
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (3, 2, 16), (16, 16), (3, 2, 2, 2)
    operands = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    np.testing.assert_allclose(program(*operands), function(*operands), atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "qrnn"])
@pytest.mark.parametrize("method", ["dynamic", "dense"])
def test_a_model_for_any_batch_and_length(cell, method):
    """Its state and ``Info`` are written too."""
    config = ModelConfig(vocab_size=20, hidden_size=16, num_layers=1, block_size=8, cell=cell, method=method)
    lm = language_model(config)
    params = decode_params(lm.init(jax.random.key(0)), config)
    b, t = jax.export.symbolic_shape("b,t")
    carry = jax.eval_shape(lambda: lm.init_carry(b))
    program = again(lm.apply, params, jax.ShapeDtypeStruct((b, t), jnp.int32), carry)
    for batch, length in ((1, 1), (20, 3)):
        tokens = jax.random.randint(jax.random.key(batch), (batch, length), 0, 20)
        actual, wanted = (run(params, tokens, lm.init_carry(batch)) for run in (program, jax.jit(lm.apply)))
        assert isinstance(actual[2], Info)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, wanted)
