"""What is in the programs of whole models: counted, not timed."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from bwds.config import ModelConfig
from bwds.generate import generate
from bwds.linear import linear
from bwds.lstm import _step, init_lstm, init_lstm_carry, lstm
from bwds.model import decode_params, language_model
from bwds.qrnn import init_qrnn, init_qrnn_carry, qrnn
from pallas_kernels import largest, topk_kernels

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

# Training -------------------------------------------------------------------------------------------------------------

STEPS, BATCH = 7, 20
WORK = {"add", "add_any", "mul", "dot_general", "dynamic_update_slice", "scatter-add"}


def operations(jaxpr, length, inside=False):
    """(primitive, size of its result, whether it is in a scan of ``length`` steps) of all that a jaxpr holds."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        in_scan = inside or (name == "scan" and equation.params["length"] == length)
        for variable in equation.outvars:
            yield name, variable.aval.size, inside
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from operations(inner, length, in_scan)


def work_on_whole_weights(function, params, x, carry, size):
    """How many arithmetic results as large as a weight there are: (in every time step, once)."""

    def loss(params, x):
        return function(params, x, carry)[0].sum()

    found = [
        inside
        for name, results, inside in operations(jax.make_jaxpr(jax.grad(loss))(params, x).jaxpr, STEPS)
        if name in WORK and results == size
    ]
    return sum(found), len(found) - sum(found)


@pytest.mark.parametrize("method", ["dynamic", "dense"])
def test_no_gradient_of_a_weight_is_summed_over_time_steps(method):
    config = ModelConfig(hidden_size=64, block_size=16, method=method)
    params, carry = init_lstm(jax.random.key(0), config), init_lstm_carry(BATCH, config)
    x = jnp.ones((BATCH, STEPS, 64))
    size = 64 * 256

    def differentiated_as_it_stands(params, x, carry):
        """The same recurrence without the rule of its own: what the test must notice."""
        options, num_kept = None, None
        z = linear(params["input"], x, None)[0].swapaxes(0, 1)
        step = lambda carry, z: (_step(params["hidden"], params["bias"], num_kept, options, carry, z)[0], carry.h)  # noqa: E731
        return jax.lax.scan(step, carry, z)[1], carry

    every_step, _ = work_on_whole_weights(functools.partial(lstm, config=config), params, x, carry, size)
    assert every_step == 0
    if method == "dense":
        every_step, _ = work_on_whole_weights(differentiated_as_it_stands, params, x, carry, size)
        assert every_step > 0


@pytest.mark.parametrize("cell", ["lstm", "qrnn"])
def test_the_input_side_is_one_product_for_all_time_steps(cell):
    config = ModelConfig(hidden_size=64, block_size=16, cell=cell, method="dense")
    init, init_carry, layer = {"lstm": (init_lstm, init_lstm_carry, lstm), "qrnn": (init_qrnn, init_qrnn_carry, qrnn)}[
        cell
    ]
    params, carry = init(jax.random.key(0), config), init_carry(BATCH, config)
    jaxpr = jax.make_jaxpr(lambda p, x: layer(p, x, carry, config))(params, jnp.ones((BATCH, STEPS, 64))).jaxpr
    products = [(size, inside) for name, size, inside in operations(jaxpr, STEPS) if name == "dot_general"]
    width = {"lstm": 4, "qrnn": 3}[cell] * 64
    assert products.count((BATCH * STEPS * width, False)) == 1
    assert [size for size, inside in products if inside] == ([BATCH * width] if cell == "lstm" else [])


# Decoding on accelerators ---------------------------------------------------------------------------------------------


def lowered(platform, function, *arguments) -> str:
    # jax 0.11 and later asks for a device to lower a Triton kernel for.
    device = getattr(jax.sharding, "AbstractDevice", None)
    chip = {} if device is None else {"abstract_device": device("NVIDIA H200", 132, "cuda")}
    mesh = jax.sharding.AbstractMesh((1,), ("x",), **(chip if platform == "cuda" else {}))
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def lowered_decoding(platform, cell) -> str:
    config = ModelConfig(vocab_size=50, hidden_size=256, block_size=128, cell=cell, num_layers=1)
    lm = language_model(config)
    params = decode_params(lm.init(jax.random.key(0)), config)
    prompt, key = jnp.zeros((1,), jnp.int32), jax.random.key(0)
    decode = lambda p, t, k: generate(lm, p, t, key=k, length=8, temperature=0.0)  # noqa: E731
    return lowered(platform, decode, params, prompt, key)


def assert_waits_for_nothing(text):
    """No branch and no loop whose end is decided by data: on a GPU either asks the host after every step."""
    assert "stablehlo.if" not in text
    # The choice of the platform itself: an index that is a constant, or chosen by one.
    chosen = ""
    for name, index in re.findall(r'(%\w+) = "stablehlo\.case"\((%\w+)\)', text):
        assert index.startswith("%c") or index == chosen
        chosen = name
    # Loops over a known number of steps: a counter is compared with a constant.
    conditions = re.findall(r"stablehlo\.while.*?cond \{(.*?)\} do", text, re.DOTALL)
    assert len(conditions) == text.count("stablehlo.while") > 0
    for condition in conditions:
        assert re.findall(r"stablehlo\.compare +(\w+), %iterArg\w*, %c\w*,", condition) == ["LT"], condition


@pytest.mark.parametrize("cell", ["lstm", "qrnn"])
@pytest.mark.parametrize(("platform", "kernel"), [("cuda", "gates_kernel"), ("tpu", "tpu_custom_call")])
def test_decoding_on_an_accelerator_waits_for_nothing(platform, kernel, cell):
    text = lowered_decoding(platform, cell)
    assert kernel in text
    assert_waits_for_nothing(text)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_nor_does_a_search_among_more_scores_than_a_kernel_takes(platform):
    text = lowered(platform, largest, jnp.zeros((1, topk_kernels.MAX_SCORES + 1)), jnp.int32(7))
    assert "custom_call" not in text
    assert_waits_for_nothing(text)
