"""What is in the programs of whole models: counted, not timed."""

import re

import jax
import jax.numpy as jnp
import pytest

from bwds.config import ModelConfig
from bwds.counts import kept_count
from bwds.generate import generate
from bwds.linear import gate_options, linear
from bwds.lstm import _step, init_lstm, init_lstm_carry, lstm
from bwds.model import decode_params, language_model
from bwds.qrnn import init_qrnn, init_qrnn_carry, qrnn
from pallas_kernels import largest
from pallas_kernels.topk.search import MAX_SCORES

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")

# Training -------------------------------------------------------------------------------------------------------------

STEPS, BATCH = 7, 20
WORK = {"add", "add_any", "mul", "dot_general", "dynamic_update_slice", "scatter-add"}
LAYERS = {"lstm": (init_lstm, init_lstm_carry, lstm), "qrnn": (init_qrnn, init_qrnn_carry, qrnn)}
WIDTH = {"lstm": 256, "qrnn": 192}
each_method = pytest.mark.parametrize("method", ["dynamic", "dense", "magnitude"])


def layer(cell="lstm", **settings):
    """(configuration, parameters, function of parameters and inputs, inputs)."""
    config = ModelConfig(hidden_size=64, block_size=16, cell=cell, **settings)
    init, init_carry, apply = LAYERS[cell]
    x, carry = jnp.ones((BATCH, STEPS, 64), config.dtype), init_carry(BATCH, config)
    return config, init(jax.random.key(0), config), lambda params, x: apply(params, x, carry, config)[0], x


def operations(jaxpr, length, inside=False):
    """(primitive, its result, whether it is in a scan of ``length`` steps) of all that a jaxpr holds."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        in_scan = inside or (name == "scan" and equation.params["length"] == length)
        for variable in equation.outvars:
            yield name, variable.aval, inside
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from operations(inner, length, in_scan)


def operations_of_gradient(function, params, x):
    gradient = jax.grad(lambda params, x: function(params, x).astype(jnp.float32).sum())
    return operations(jax.make_jaxpr(gradient)(params, x).jaxpr, STEPS)


@each_method
def test_no_gradient_of_a_weight_is_summed_over_time_steps(method):
    config, params, function, x = layer(method=method, implementation="xla")
    options = gate_options(config)
    num_kept = None if options is None else kept_count(options.grid, config.sparsity, options.scope)

    def differentiated_as_it_stands(params, x):
        """The same recurrence without its own rule: the test must notice the difference."""
        z = linear(params["input"], x, options, config.sparsity)[0].swapaxes(0, 1)
        step = lambda carry, z: (_step(params["hidden"], params["bias"], num_kept, options, carry, z)[0], carry.h)  # noqa: E731
        return jax.lax.scan(step, init_lstm_carry(BATCH, config), z)[1]

    def work_in_every_step_on_whole_weights(function):
        found = operations_of_gradient(function, params, x)
        return sum(inside and name in WORK and result.size == 64 * 256 for name, result, inside in found)

    assert work_in_every_step_on_whole_weights(function) == 0
    assert work_in_every_step_on_whole_weights(differentiated_as_it_stands) > 0


@each_method
def test_weights_are_cast_before_the_time_steps(method):
    _, params, function, x = layer(method=method, dtype="bfloat16", implementation="xla")
    sizes = {leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim == 2}
    casts = [
        inside
        for name, result, inside in operations_of_gradient(function, params, x)
        if name == "convert_element_type" and result.dtype == jnp.bfloat16 and result.size in sizes
    ]
    assert casts
    assert not any(casts)


@pytest.mark.parametrize("cell", ["lstm", "qrnn"])
@each_method
def test_the_input_side_is_one_product_for_all_time_steps(cell, method):
    # The reference implementation makes one dot of the blocks of a product; another sums the scores.
    _, params, function, x = layer(cell, method=method, implementation="reference")
    jaxpr = jax.make_jaxpr(function)(params, x).jaxpr
    products = [(result.size, inside) for name, result, inside in operations(jaxpr, STEPS) if name == "dot_general"]
    results, scores = WIDTH[cell], {"lstm": 4 * 16, "qrnn": 8 * 12}[cell]
    sizes = [results, scores] if method == "dynamic" else [results]
    assert [products.count((BATCH * STEPS * size, False)) for size in sizes] == [1] * len(sizes)
    inside = [size for size, inside in products if inside]
    assert [inside.count(BATCH * size) for size in sizes] == [int(cell == "lstm")] * len(sizes)
    assert cell == "lstm" or not inside


# Decoding on accelerators ---------------------------------------------------------------------------------------------


def lowered(platform, function, *arguments) -> str:
    # jax 0.11 and later asks for a device to lower a Triton kernel for.
    device = getattr(jax.sharding, "AbstractDevice", None)
    chip = {} if device is None else {"abstract_device": device("NVIDIA H200", 132, "cuda")}
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("x",), axis_types=auto, **(chip if platform == "cuda" else {}))
    with jax.sharding.use_abstract_mesh(mesh):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def lowered_decoding(platform, cell, **settings) -> str:
    config = ModelConfig(vocab_size=50, hidden_size=256, block_size=128, cell=cell, num_layers=1, **settings)
    lm = language_model(config)
    params = decode_params(lm.init(jax.random.key(0)), config)
    prompt, key = jnp.zeros((1,), jnp.int32), jax.random.key(0)
    decode = lambda p, t, k: generate(lm, p, t, key=k, length=8, temperature=0.0)  # noqa: E731
    return lowered(platform, decode, params, prompt, key)


def assert_waits_for_nothing(text):
    """No branch and no loop whose end is decided by data: on a GPU either asks the host after every step."""
    assert "stablehlo.if" not in text
    # A case is the choice of the platform: its index is a constant, or chosen by one.
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
    text = lowered(platform, largest, jnp.zeros((1, MAX_SCORES + 1)), jnp.int32(7))
    assert "custom_call" not in text
    assert_waits_for_nothing(text)


@pytest.mark.parametrize("scope", ["matrix", "column"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_model_that_names_xla_holds_no_kernel(platform, scope):
    assert "custom_call" not in lowered_decoding(platform, "lstm", implementation="xla", gate_scope=scope)
