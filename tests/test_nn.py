"""NNX modules compute what the functions compute, with parameters of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bwds import ModelConfig, block_sparse_matmul, nn, topk_gates
from bwds.lstm import lstm
from bwds.qrnn import qrnn

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def normal(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def test_linear_is_scores_gates_product_and_bias():
    layer = nn.BlockSparseLinear(24, 32, sparsity=0.6, block_shape=(8, 4), rngs=nnx.Rngs(0))
    layer.bias[...] = normal(32)
    x = normal(3, 5, 24)
    scores = x @ layer.gate["kernel"][...] + layer.gate["bias"][...][None, None, :]
    gates = topk_gates(scores.reshape(3, 5, 3, 8), sparsity=0.6, activation="softplus")
    expected = (
        block_sparse_matmul(x, layer.kernel[...], gates, implementation="reference") + layer.bias[...][None, None]
    )
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
    # ceil(0.4 * 24) blocks of every row are kept.
    assert (gates != 0).sum((-1, -2)).tolist() == [[10] * 5] * 3


def test_linear_options_matter():
    x = normal(4, 24)

    def make(**options):
        return nn.BlockSparseLinear(24, 32, block_shape=(8, 8), rngs=nnx.Rngs(0), **options)

    plain = make()
    assert make(use_bias=False).bias is None
    assert make(gate_rank=3).gate["down"].shape == (24, 3)
    others = ({"sparsity": 0.9}, {"gate_activation": "linear"}, {"gate_normalization": "none"}, {"gate_scope": "column"})
    for options in others:
        assert np.abs(make(**options)(x) - plain(x)).max() > 1e-3


@pytest.mark.parametrize(("module", "function", "cell"), [(nn.LSTM, lstm, "lstm"), (nn.QRNN, qrnn, "qrnn")])
def test_recurrent_layers_are_the_functions(module, function, cell):
    layer = module(16, block_size=8, sparsity=0.5, gate_rank=4, rngs=nnx.Rngs(1))
    config = ModelConfig(cell=cell, hidden_size=16, block_size=8, gate_rank=4, gate_activation="softplus")
    params = nnx.to_pure_dict(nnx.state(layer, nnx.Param))["params"]
    x = normal(2, 6, 16)
    y, carry = layer(x)
    expected, expected_carry, _ = function(params, x, layer.init_carry(2), config)
    np.testing.assert_array_equal(y, expected)
    # A window in two parts.
    first, middle = layer(x[:, :2])
    second, last = layer(x[:, 2:], middle)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), y, rtol=1e-5, atol=1e-6)
    for got, want in zip(last, expected_carry, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    for got, want in zip(carry, expected_carry, strict=True):
        np.testing.assert_array_equal(got, want)


def test_gradients_reach_every_parameter_through_split_and_merge():
    layer = nn.LSTM(16, block_size=8, rngs=nnx.Rngs(2))
    definition, state = nnx.split(layer)
    x = normal(3, 4, 16)

    @jax.jit
    def loss(state):
        y, _ = nnx.merge(definition, state)(x)
        return (y**2).sum()

    gradients = nnx.to_pure_dict(jax.grad(loss)(state))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_dense_and_bfloat16_layers():
    layer = nn.QRNN(16, method="dense", dtype="bfloat16", rngs=nnx.Rngs(3))
    y, carry = layer(normal(2, 3, 16))
    assert y.dtype == jnp.bfloat16
    assert carry.c.dtype == jnp.float32


def on_carry(layer, batch):
    layer = layer(16, block_size=8, rngs=nnx.Rngs(0))
    return layer(jnp.ones((2, 3, 16)), layer.init_carry(batch))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.BlockSparseLinear(24, 32, sparsity=1.0, rngs=nnx.Rngs(0)), "sparsity is 1.0"),
        (lambda: nn.BlockSparseLinear(24, 32, rngs=nnx.Rngs(0)), "does not divide a kernel of shape"),
        (lambda: nn.BlockSparseLinear(0, 32, rngs=nnx.Rngs(0)), "in_features is 0"),
        (lambda: nn.BlockSparseLinear(128, 128, gate_rank=0, rngs=nnx.Rngs(0)), "gate_rank is 0"),
        (lambda: nn.BlockSparseLinear(128, 128, gate_activation="relu", rngs=nnx.Rngs(0)), "gate_activation is 'relu'"),
        (lambda: nn.BlockSparseLinear(128, 128, gate_scope="row", rngs=nnx.Rngs(0)), "gate_scope is 'row'"),
        (lambda: nn.BlockSparseLinear(128, 128, implementation="cuda", rngs=nnx.Rngs(0)), "implementation is 'cuda'"),
        (lambda: nn.LSTM(100, rngs=nnx.Rngs(0)), "not a multiple of block_size"),
        (lambda: nn.LSTM(16, block_size=8, rngs=nnx.Rngs(0))(jnp.ones((2, 3, 17))), "must be \\[B, T, 16\\]"),
        (lambda: nn.QRNN(16, block_size=8, rngs=nnx.Rngs(0))(jnp.ones((2, 0, 16))), "at least one time step"),
        (lambda: on_carry(nn.LSTM, batch=4), "make it with init_carry\\(2\\)"),
        (lambda: on_carry(nn.QRNN, batch=4), "make it with init_carry\\(2\\)"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", ["magnitude", "static-block"])
def test_what_only_training_can_do_is_refused(method):
    with pytest.raises(ValueError, match=f"method is '{method}'; a layer alone is 'dynamic' or 'dense'"):
        nn.LSTM(16, method=method, block_size=4, rngs=nnx.Rngs(0))
