"""Containers and ranges are checked as shapes are: the right result, or a sentence that names what differs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict

import bwds
from bwds.generate import generate
from bwds.lstm import LSTMCarry

pytestmark = pytest.mark.usefixtures("unchecked")

CONFIG = bwds.ModelConfig(vocab_size=300, hidden_size=8, block_size=4, num_layers=1, gate_activation="softplus")
TOKENS = np.random.default_rng(0).integers(0, 120, (2, 3)).astype(np.int32)
KEY = jax.random.key(0)


@functools.cache
def model(**changes):
    lm = bwds.language_model(dataclasses.replace(CONFIG, **changes))
    return lm, lm.init(KEY)


def shapes(params, tokens=TOKENS, carry=None, **changes):
    """The shapes of what ``apply`` returns; it sees the values of ``tokens``, but of nothing else."""
    lm, _ = model(**changes)
    carry = lm.init_carry(2) if carry is None else carry
    return jax.eval_shape(lambda params, carry: lm.apply(params, tokens, carry), params, carry)


def contained(params):
    return nnx.Dict({k: contained(v) if isinstance(v, dict) else nnx.Param(v) for k, v in params.items()})


# Parameters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "container",
    [
        FrozenDict,
        contained,
        lambda params: nnx.state(contained(params)),
        lambda params: jax.tree.map(nnx.Param, params),
        jax.device_get,
    ],
    ids=["FrozenDict", "nnx.Dict", "nnx.State", "nnx.Param", "NumPy"],
)
def test_parameters_come_in_any_mapping(container):
    lm, params = model()
    carry = lm.init_carry(2)
    wanted = jax.jit(lm.apply)(params, TOKENS, carry)[0]
    held = container(params)
    np.testing.assert_array_equal(jax.jit(lambda tokens: lm.apply(held, tokens, carry)[0])(TOKENS), wanted)
    laid_out = bwds.decode_params(held, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, laid_out, bwds.decode_params(params, CONFIG))
    words = generate(lm, held, [1, 2], key=KEY, length=jnp.int8(3))
    np.testing.assert_array_equal(words, generate(lm, params, np.uint8([1, 2]), key=KEY, length=3))


def test_parameters_that_are_laid_out_stay_so():
    params = bwds.decode_params(model(dtype="bfloat16")[1], dataclasses.replace(CONFIG, dtype="bfloat16"))
    again = bwds.decode_params(params, dataclasses.replace(CONFIG, dtype="bfloat16"))
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_a_gate_without_parameters_may_be_left_out():
    _, params = model(gate_source="random")
    assert shapes({**params, "layer_0": jax.tree.map(jnp.asarray, params["layer_0"])}, gate_source="random")
    held = nnx.state(contained(params))
    assert shapes(held, gate_source="random")[0].shape == (2, 3, 300)


OTHERS = [
    ({"vocab_size": 200}, "embedding of shape .200, 8.; vocab_size 300"),
    ({"hidden_size": 16}, "embedding of shape .300, 16.; vocab_size 300, hidden_size 8 need .300, 8."),
    ({"num_layers": 2}, "layer_1; num_layers 1"),
    ({"cell": "qrnn"}, "cell 'lstm'"),
    ({"method": "dense"}, "no layer_0/hidden/gate; method 'dynamic'"),
    ({"block_size": 2}, "block_size 4"),
    ({"gate_rank": 2}, "gate_rank None"),
    ({"gate_source": "bias"}, "gate_source 'learned'"),
    ({"gate_source": "norm"}, "no layer_0/.*/gate/.*; .*gate_source 'learned'"),
    ({"tied_softmax": True}, "no softmax/kernel; .*tied_softmax False"),
]


@pytest.mark.parametrize(("changes", "named"), OTHERS, ids=[next(iter(changes)) for changes, _ in OTHERS])
def test_parameters_of_another_model_are_refused(changes, named):
    _, params = model(**changes)
    with pytest.raises(ValueError, match=rf"params hold .*{named}.*: take the configuration that they were made with"):
        shapes(params)
    with pytest.raises(ValueError, match=named):
        bwds.decode_params(params, CONFIG)
    # And the other way round.
    with pytest.raises(ValueError, match="params hold "):
        shapes(model()[1], **changes)


def test_parameters_of_another_gate_rank_are_refused():
    _, params = model(gate_rank=2)
    with pytest.raises(ValueError, match=r"down of shape \(8, 2\); .*gate_rank 3.* need \(8, 3\)"):
        shapes(params, gate_rank=3)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        (None, "params is a NoneType"),
        ([1.0], "params is a list"),
        ({"embedding": [1.0]}, "'embedding'. is a list"),
        ({0: np.ones(1)}, "params hold 0; "),
    ],
)
def test_what_holds_no_parameters_is_refused(params, named):
    lm, _ = model()
    for call in (lambda: lm.apply(params, TOKENS, lm.init_carry(2)), lambda: bwds.decode_params(params, CONFIG)):
        with pytest.raises(ValueError, match=rf"{named}.*\."):
            call()


@pytest.mark.parametrize("function", [bwds.cost, bwds.equal_cost_dense, bwds.language_model])
def test_what_is_no_configuration_is_refused(function):
    with pytest.raises(ValueError, match=r"config is a dict; it must be a ModelConfig.*\."):
        function({"hidden_size": 8})


def test_the_configuration_of_a_run_is_no_model():
    with pytest.raises(ValueError, match="config is a Config; it must be a ModelConfig"):
        bwds.language_model(bwds.Config())


# Carries --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "qrnn"])
def test_a_carry_of_another_kind_is_refused(cell):
    lm, params = model(cell=cell)
    other, _ = model(cell="qrnn" if cell == "lstm" else "lstm")
    (state,) = lm.init_carry(2)
    for carry, named in (
        (other.init_carry(2), "carry.0. is a .*Carry; this layer needs a .*Carry: make it with init_carry.2."),
        ((tuple(state),), "carry.0. is a tuple"),
        ((dict(state._asdict()),), "carry.0. is a dict"),
        (state, "carry is a .*Carry; it must be a tuple"),
        ({0: state}, "carry is a dict"),
        ((state, state), "carry holds 2 layers"),
        (lm.init_carry(3), "carry.0.*make it with init_carry.2."),
        ((state._replace(c=state.c[:, :4]),), "carry.0..c has shape .2, 4."),
        ((state._replace(c=state.c.astype(jnp.bfloat16)),), "type bfloat16"),
        ((state._replace(c=[0.0]),), "carry.0..c is a list"),
    ):
        with pytest.raises(ValueError, match=rf"{named}.*\."):
            lm.apply(params, TOKENS, carry)


def test_a_carry_of_numpy_goes_on():
    lm, params = model()
    carry = jax.device_get(lm.init_carry(np.int64(2)))
    assert isinstance(carry[0], LSTMCarry)
    assert shapes(params, carry=carry)[0].shape == (2, 3, 300)


@pytest.mark.parametrize("batch", [-1, 2.0, "2", None, True, np.float32(2), 2**31, jnp.ones(2, int)], ids=repr)
def test_a_batch_that_is_no_number_of_streams_is_refused(batch):
    with pytest.raises(ValueError, match=r"batch is .*\."):
        model()[0].init_carry(batch)


def test_a_batch_may_be_a_number_of_numpy_or_jax_or_a_symbol():
    lm, _ = model()
    for batch in (np.int64(2), np.uint8(2), jnp.int32(2), np.asarray(2)):
        assert lm.init_carry(batch)[0].c.shape == (2, 8)
    (symbol,) = jax.export.symbolic_shape("b")
    assert jax.eval_shape(lambda: lm.init_carry(symbol))[0].c.shape == (symbol, 8)


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_tokens_of_any_whole_type_are_the_same_words():
    lm, params = model()
    apply = jax.jit(lambda tokens: lm.apply(params, tokens, lm.init_carry(2))[0])
    wanted = apply(TOKENS)
    for dtype in ("int8", "uint8", "int16", "uint16", "uint32"):
        np.testing.assert_array_equal(apply(jnp.asarray(TOKENS, dtype)), wanted)
    np.testing.assert_array_equal(shapes(params, TOKENS.tolist())[0].shape, wanted.shape)
    # Ids that cannot be looked at are taken as the nearest token.
    near, far = np.array([[0, 299, 0], [1, 299, 2]]), np.array([[-1, 300, -128], [1, 2**30, 2]])
    np.testing.assert_array_equal(apply(jnp.asarray(far)), apply(jnp.asarray(near)))


@pytest.mark.parametrize("bad", [-1, 300, 2**31 + 5])
def test_ids_outside_of_the_vocabulary_are_refused_where_they_can_be_seen(bad):
    _, params = model()
    tokens = TOKENS.astype(np.int64)
    tokens[1, 1] = bad
    for given in (tokens, tokens.tolist()):
        with pytest.raises(ValueError, match=rf"tokens go from .*{bad}.*; the ids of 300 tokens go from 0 to 299\."):
            shapes(params, given)
    with pytest.raises(ValueError, match="prompt_ids go from "):
        generate(*model(), tokens[1], key=KEY, length=1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"length": 2.0}, "length is 2.0; it must be one whole number"),
        ({"length": None}, "length is None"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"top_p": np.array([1.0, 1.0])}, "top_p is an array of shape"),
        ({"prompt_ids": [1.5]}, "prompt_ids have .*they must be integers"),
        ({"params": None}, "params is a NoneType"),
        ({"params": {}}, "params hold no embedding"),
        ({"params": {"embedding": np.float32(1)}}, "params hold embedding of shape ..; "),
    ],
)
def test_generation_refuses_what_it_cannot_take(options, named):
    lm, params = model()
    with pytest.raises(ValueError, match=rf"{named}.*\."):
        generate(**{"lm": lm, "params": params, "prompt_ids": [1], "key": KEY, "length": 2, **options})


# Nothing at all, and numbers ------------------------------------------------------------------------------------------


def test_no_examples_give_no_results():
    x, w, gates = jnp.ones((2, 4)), jnp.ones((4, 6)), jnp.ones((2, 2, 3))
    none = lambda array: jnp.zeros((0, *array.shape), array.dtype)  # noqa: E731
    product = lambda x, w, gates: bwds.block_sparse_matmul(x, w, gates).sum()  # noqa: E731
    for axes in ((0, None, 0), (None, 0, None), (0, 0, 0), (None, None, 0)):
        arrays = [array if axis is None else none(array) for array, axis in zip((x, w, gates), axes, strict=True)]
        assert jax.vmap(bwds.block_sparse_matmul, axes)(*arrays).shape == (0, 2, 6)
        gradients = jax.vmap(jax.grad(product, (0, 1, 2)), axes)(*arrays)
        assert [g.shape for g in gradients] == [(0, 2, 4), (0, 4, 6), (0, 2, 2, 3)]
    lm, params = model()
    carry = jax.tree.map(none, lm.init_carry(2))
    logits, after, _ = jax.vmap(lm.apply, (None, 0, 0))(params, jnp.zeros((0, 2, 3), int), carry)
    assert (logits.shape, after[0].c.shape) == ((0, 2, 3, 300), (0, 2, 8))
    logits, after, _ = lm.apply(params, jnp.zeros((0, 3), int), lm.init_carry(0))
    assert (logits.shape, after[0].c.shape) == ((0, 3, 300), (0, 8))


@pytest.mark.parametrize("name", ["x", "w", "gates"])
def test_a_product_of_lists_is_refused(name):
    arrays = {"x": jnp.ones((2, 4)), "w": jnp.ones((4, 6)), "gates": jnp.ones((2, 2, 3))}
    with pytest.raises(ValueError, match=rf"{name} is a list; it must be an array\."):
        bwds.block_sparse_matmul(**{**arrays, name: arrays[name].tolist()})


def test_numbers_of_numpy_and_jax_make_an_equal_configuration():
    wanted = dataclasses.replace(CONFIG, sparsity=0.75, dropout=0.5, gate_rank=2)
    for half, number in ((np.float32, np.int64), (jnp.float32, jnp.int32), (np.asarray, np.asarray)):
        config = bwds.ModelConfig(
            vocab_size=number(300),
            hidden_size=number(8),
            block_size=number(4),
            num_layers=number(1),
            gate_activation="softplus",
            sparsity=half(0.75),
            dropout=half(0.5),
            gate_rank=number(2),
        )
        assert config == wanted
        assert all(type(value) in (int, float, str, bool, type(None)) for value in dataclasses.astuple(config))


@pytest.mark.parametrize("value", [jnp.ones(2), jnp.bool_(True), np.array([8]), KEY, {"a": 1}], ids=type)
def test_an_array_is_no_number_of_a_configuration(value):
    with pytest.raises(ValueError, match=r"hidden_size is [^\n]*; it must be a whole number\."):
        bwds.ModelConfig(hidden_size=value)
