"""NNX modules compute what the functions compute, with parameters of their own."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bwds import ModelConfig, block_sparse_matmul, gate_scores, init_gate, nn, topk_gates
from bwds.lstm import lstm
from bwds.qrnn import qrnn


def normal(*shape):
    return jax.random.normal(jax.random.key(sum(shape)), shape)


@pytest.mark.parametrize("activation", ["softplus", "softmax", "relu"])
def test_linear_is_scores_gates_product_and_bias(activation):
    layer = nn.BlockSparseLinear(24, 32, sparsity=0.6, block_shape=(8, 4), gate_activation=activation, rngs=nnx.Rngs(0))
    layer.bias[...] = normal(32)
    x = normal(3, 5, 24)
    scores = x @ layer.gate["kernel"][...] + layer.gate["bias"][...][None, None, :]
    gates = topk_gates(scores.reshape(3, 5, 3, 8), sparsity=0.6, activation=activation)
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
    others = {"sparsity": 0.9, "gate_activation": "linear", "gate_normalization": "none", "gate_scope": "column"}
    for options in ({name: value} for name, value in others.items()):
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


MODULES = {
    "linear": (lambda rngs: nn.BlockSparseLinear(24, 32, block_shape=(8, 4), rngs=rngs), (3, 24)),
    "gates": (lambda rngs: nn.BlockSparseLinear(24, 32, block_shape=(8, 4), return_gates=True, rngs=rngs), (3, 24)),
    "lstm": (lambda rngs: nn.LSTM(16, block_size=8, gate_rank=2, rngs=rngs), (2, 3, 16)),
    "qrnn": (lambda rngs: nn.QRNN(16, block_size=8, rngs=rngs), (2, 3, 16)),
    "dense": (lambda rngs: nn.LSTM(16, method="dense", rngs=rngs), (2, 3, 16)),
}
each_module = pytest.mark.parametrize("name", MODULES)


def assert_equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("decoding", [False, True], ids=["built", "for_decoding"])
@each_module
def test_a_module_can_be_shown_and_goes_through_all_that_modules_do(name, decoding):
    make, shape = MODULES[name]
    layer, other, x = make(nnx.Rngs(0)), make(nnx.Rngs(1)), normal(*shape)
    if decoding:
        layer, other = layer.for_decoding(), other.for_decoding()
    y = layer(x)
    state = {"carry": y.carry} if decoding and not isinstance(layer, nn.BlockSparseLinear) else {}
    assert len(nnx.tabulate(layer, x, **state)) > 100
    assert_equal(layer(x), y)
    definition, state = nnx.split(layer)
    assert_equal(nnx.merge(definition, state)(x), y)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), nnx.clone(layer)):
        assert_equal(copied(x), y)
    nnx.update(other, nnx.restore_int_paths(nnx.to_pure_dict(nnx.state(layer))))
    assert_equal(other(x), y)
    gradients = nnx.jit(nnx.grad(lambda layer: (jax.tree.leaves(layer(x))[0] ** 2).sum()))(layer)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


@each_module
def test_a_copy_for_decoding_gives_the_same(name, monkeypatch):
    # Otherwise blocks as small as these would stay where they are.
    monkeypatch.setattr("bwds.linear.pays_to_skip", lambda *_: True)
    make, shape = MODULES[name]
    layer, x = make(nnx.Rngs(0)), normal(*shape)
    laid_out = layer.for_decoding()
    # The layout decides in which order a product is summed.
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), laid_out(x), layer(x))
    again = laid_out.for_decoding()
    assert_equal(nnx.to_pure_dict(nnx.state(again)), nnx.to_pure_dict(nnx.state(laid_out)))
    dimensions = {leaf.ndim for leaf in jax.tree.leaves(nnx.state(laid_out))}
    assert (4 in dimensions) == (name != "dense")
    assert 4 not in {leaf.ndim for leaf in jax.tree.leaves(nnx.state(layer))}


def test_a_copy_for_decoding_has_matrices_in_the_compute_type():
    layer = nn.LSTM(16, block_size=8, dtype="bfloat16", rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.state(layer.for_decoding()))["params"]
    assert (params["input"]["kernel"].dtype, params["bias"].dtype) == (jnp.bfloat16, jnp.float32)
    assert_equal(layer.for_decoding()(normal(2, 3, 16)), layer(normal(2, 3, 16)))


def test_gates_are_returned():
    layer = nn.BlockSparseLinear(24, 32, sparsity=0.75, block_shape=(8, 4), return_gates=True, rngs=nnx.Rngs(0))
    x = normal(2, 5, 24)
    y, gates = layer(x)
    assert gates.shape == (2, 5, 3, 8)
    assert ((gates != 0).sum((-1, -2)) == 6).all()
    np.testing.assert_allclose(y, block_sparse_matmul(x, layer.kernel[...], gates), rtol=1e-5, atol=1e-6)


def test_a_container_of_a_gate_is_taken_inside_a_module():
    class Layer(nnx.Module):
        def __init__(self):
            self.gate = nnx.Dict({k: nnx.Param(v) for k, v in init_gate(jax.random.key(0), 4, 6).items()})

        def __call__(self, x):
            return gate_scores(self.gate, x, (2, 3))

    layer, x = Layer(), normal(5, 4)
    assert len(nnx.tabulate(layer, x)) > 100
    assert_equal(layer(x), gate_scores(init_gate(jax.random.key(0), 4, 6), x, (2, 3)))


def test_numbers_of_numpy_and_jax_make_a_layer():
    layer = nn.BlockSparseLinear(
        np.int64(24), jnp.int32(32), sparsity=jnp.float32(0.75), block_shape=(np.int32(8), 4), rngs=nnx.Rngs(0)
    )
    again = nn.BlockSparseLinear(24, 32, sparsity=0.75, block_shape=(8, 4), rngs=nnx.Rngs(0))
    assert nnx.graphdef(layer) == nnx.graphdef(again)
    recurrent = nn.QRNN(np.int64(16), block_size=jnp.int32(8), gate_rank=np.int8(2), rngs=nnx.Rngs(0))
    assert recurrent.config == nn.QRNN(16, block_size=8, gate_rank=2, rngs=nnx.Rngs(0)).config


def test_dense_and_bfloat16_layers():
    layer = nn.QRNN(16, method="dense", dtype="bfloat16", rngs=nnx.Rngs(3))
    y, carry = layer(normal(2, 3, 16))
    assert y.dtype == jnp.bfloat16
    assert carry.c.dtype == jnp.float32


def on_carry(layer, batch, of=None):
    carry = (of or layer)(16, block_size=8, rngs=nnx.Rngs(0)).init_carry(batch)
    return layer(16, block_size=8, rngs=nnx.Rngs(0))(jnp.ones((2, 3, 16)), carry)


def with_state_of(layer, *, block_size):
    state = nnx.state(layer(16, block_size=block_size, rngs=nnx.Rngs(0)))
    return nnx.merge(nnx.graphdef(layer(16, block_size=8, rngs=nnx.Rngs(0))), state)(jnp.ones((2, 3, 16)))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.BlockSparseLinear(24, 32, sparsity=1.0, rngs=nnx.Rngs(0)), "sparsity is 1.0"),
        (lambda: nn.BlockSparseLinear(24, 32, rngs=nnx.Rngs(0)), "does not divide a kernel of shape"),
        (lambda: nn.BlockSparseLinear(0, 32, rngs=nnx.Rngs(0)), "in_features is 0"),
        (lambda: nn.BlockSparseLinear(128, 128, gate_rank=0, rngs=nnx.Rngs(0)), "gate_rank is 0"),
        (lambda: nn.BlockSparseLinear(128, 128, gate_activation="gelu", rngs=nnx.Rngs(0)), "gate_activation is 'gelu'"),
        (
            lambda: nn.LSTM(128, gate_activation="softmax", gate_normalization="none", rngs=nnx.Rngs(0)),
            "gate_normalization is 'none' and gate_activation 'softmax'",
        ),
        (lambda: nn.BlockSparseLinear(128, 128, gate_scope="row", rngs=nnx.Rngs(0)), "gate_scope is 'row'"),
        (lambda: nn.BlockSparseLinear(128, 128, implementation="cuda", rngs=nnx.Rngs(0)), "implementation is 'cuda'"),
        (lambda: nn.LSTM(100, rngs=nnx.Rngs(0)), "not a multiple of block_size"),
        (lambda: nn.LSTM(16, block_size=8, rngs=nnx.Rngs(0))(jnp.ones((2, 3, 17))), "must be \\[B, T, 16\\]"),
        (lambda: nn.QRNN(16, block_size=8, rngs=nnx.Rngs(0))(jnp.ones((2, 0, 16))), "at least one time step"),
        (lambda: on_carry(nn.LSTM, batch=4), "make it with init_carry\\(2\\)"),
        (lambda: on_carry(nn.QRNN, batch=4), "make it with init_carry\\(2\\)"),
        (lambda: on_carry(nn.QRNN, batch=2, of=nn.LSTM), "carry is a LSTMCarry; this layer needs a QRNNCarry"),
        (lambda: on_carry(nn.LSTM, batch=-1), "batch is -1"),
        (lambda: on_carry(nn.LSTM, batch=2.0), "batch is 2.0"),
        (lambda: with_state_of(nn.LSTM, block_size=4), "block_size 8.*need \\(16,\\)"),
        (
            lambda: nn.BlockSparseLinear(128, 128, gate_normalization="l2", rngs=nnx.Rngs(0)),
            "gate_normalization is 'l2'",
        ),
        (lambda: nn.BlockSparseLinear(128, 128, block_shape=128, rngs=nnx.Rngs(0)), "block_shape is 128"),
        (lambda: nn.BlockSparseLinear(128, 128, rngs=nnx.Rngs(0))(jnp.ones((2, 64))), "must be \\[..., 128\\]"),
        (lambda: nn.BlockSparseLinear(128, 128, rngs=nnx.Rngs(0))(np.ones((2, 128), int)), "dtype int"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", ["magnitude", "static-block"])
def test_what_only_training_can_do_is_refused(method):
    with pytest.raises(ValueError, match=f"method is '{method}'; a layer alone is 'dynamic' or 'dense'"):
        nn.LSTM(16, method=method, block_size=4, rngs=nnx.Rngs(0))


def test_usage_by_label_counts_the_inputs_that_keep_a_block(unchecked):
    draw = np.random.default_rng(0)
    gates = draw.normal(size=(30, 2, 3)).astype(np.float32) * draw.integers(0, 2, (30, 2, 3))
    labels = draw.choice([0, 1, 3, -1], 30)
    used = np.asarray(nn.usage_by_label(gates, labels, 4))
    for label in (0, 1, 3):
        np.testing.assert_allclose(used[label], (gates[labels == label] != 0).mean(0), rtol=1e-6)
    assert np.isnan(used[2]).all()
    for wrong in (labels[:-1], labels.astype(np.float32), labels[:, None]):
        with pytest.raises(ValueError, match=r"they must be \[N, R, C\] and \[N\], of whole numbers"):
            nn.usage_by_label(gates, wrong, 4)
