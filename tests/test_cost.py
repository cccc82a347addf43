"""Multiply-adds and bytes against counts by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bwds import PRESETS, ModelConfig, cost, equal_cost_dense, language_model, num_kept_blocks


def test_the_papers_lstm_by_hand():
    made = cost(ModelConfig(vocab_size=10_000, hidden_size=1536, num_layers=2, block_size=128, sparsity=0.5))
    products = 4  # two layers, input and recurrent product each
    assert made.blocks == products * 288 * 128 * 128
    assert made.gates == products * 1536 * 12 * 48
    assert made.softmax == 1536 * 10_000
    assert made.dense == products * 1536 * 6144 + 1536 * 10_000
    assert made.total == made.blocks + made.gates + made.softmax
    assert made.relative == pytest.approx(made.total / made.dense)
    # The gate of blocks of 128 costs 1536 / 128^2 of its matrix.
    assert made.relative_recurrent == pytest.approx(0.5 + 1536 / 128**2)
    assert made.bytes_read == 4 * (made.total + 1536)
    assert made.dense_bytes_read == 4 * (made.dense + 1536)


def test_qrnn_low_rank_gate_and_bfloat16_by_hand():
    config = ModelConfig(
        vocab_size=100,
        hidden_size=64,
        num_layers=3,
        cell="qrnn",
        block_size=32,
        sparsity=0.75,
        gate_rank=5,
        dtype="bfloat16",
    )
    made = cost(config)
    r, c = 4, 6  # [128] -> [192]
    assert made.blocks == 3 * 6 * 32 * 32
    assert made.gates == 3 * 5 * (128 + r * c)
    assert made.bytes_read == 2 * made.total + 4 * 64


def test_column_scope_counts_every_column():
    config = ModelConfig(vocab_size=10, hidden_size=96, num_layers=1, block_size=32, sparsity=0.5, gate_scope="column")
    # Half of 3 row blocks, rounded up, in each of 12 columns, in two products.
    assert cost(config).blocks == 2 * 12 * 2 * 32 * 32


def test_dense_costs_exactly_dense():
    made = cost(ModelConfig(vocab_size=50, hidden_size=64, method="dense"))
    assert made.relative == made.relative_recurrent == 1.0
    assert made.gates == 0
    assert made.bytes_read == made.dense_bytes_read


def test_takes_a_whole_configuration_too():
    assert cost(PRESETS["ptb-lstm"]) == cost(PRESETS["ptb-lstm"].model)


@pytest.mark.parametrize("name", [name for name, config in PRESETS.items() if config.model.method == "dynamic"])
def test_every_dynamic_preset_is_cheaper_than_dense(name):
    assert cost(PRESETS[name]).relative < 1.0


@pytest.mark.parametrize("source", ["learned", "frozen", "bias", "random"])
def test_a_gate_costs_what_its_projection_costs(source):
    made = cost(ModelConfig(hidden_size=96, num_layers=1, block_size=32, gate_rank=5, gate_source=source))
    assert made.gates == (2 * 5 * (96 + 3 * 12) if source in ("learned", "frozen") else 0)
    assert made.blocks == 2 * 18 * 32 * 32


@pytest.mark.parametrize("hidden_size", [1536, 4096])
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
def test_norms_cost_next_to_nothing(hidden_size, sparsity):
    config = ModelConfig(hidden_size=hidden_size, num_layers=2, sparsity=sparsity, gate_source="norm")
    made, blocks = cost(config), hidden_size // 128
    kept = num_kept_blocks(4 * blocks**2, sparsity)
    assert made.gates == 4 * (hidden_size + 4 * blocks**2)
    assert made.blocks == 4 * kept * 128**2
    # The density asked for, plus what rounding to whole blocks adds.
    assert made.relative_recurrent == pytest.approx(1 - sparsity, rel=0.02)
    # Float32 norms of all blocks; the squares read no weight.
    norms = 4 * 4 * 4 * blocks**2
    assert made.bytes_read == 4 * (made.blocks + made.softmax + hidden_size) + norms
    low = cost(dataclasses.replace(config, dtype="bfloat16"))
    assert low.bytes_read == 2 * (made.blocks + made.softmax) + 4 * hidden_size + norms


def test_pruned_models_by_hand():
    options = {"vocab_size": 10, "hidden_size": 96, "num_layers": 1, "block_size": 32, "cell": "qrnn"}
    weights = 192 * 288
    by_weight = cost(ModelConfig(**options, method="magnitude", sparsity=0.7))
    # 0.7 of 55,296 weights are 38,707.2; the number of pruned weights is rounded down.
    assert by_weight.blocks == weights - 38_707
    by_block = cost(ModelConfig(**options, method="magnitude", magnitude_unit="block", sparsity=0.7))
    assert by_block.blocks == num_kept_blocks(6 * 9, 0.7) * 32 * 32 == 17 * 32 * 32
    # Three groups of 32: two tiles of [32] -> [32] each for three parts.
    static = cost(ModelConfig(**options, method="static-block", sparsity=2 / 3))
    assert static.blocks == 3 * (2 * 3 * 32 * 32) == weights // 3
    for made in (by_weight, by_block, static):
        assert made.gates == 0
        assert made.dense == weights + 960
        # Their products are dense, so they read as much as the dense model.
        assert made.bytes_read == made.dense_bytes_read


@pytest.mark.parametrize("cell", ["lstm", "qrnn"])
@pytest.mark.parametrize("method", ["dense", "dynamic"])
def test_xla_counts_the_same(cell, method):
    """The whole step from one token to the logits, compiled; a multiply-add is two operations.

    The products of the dynamic model are loops over a number of blocks that XLA does not know. So the gate's operations
    are those of the model minus those of a model whose scores are a bias.
    """
    config = ModelConfig(
        vocab_size=1000, hidden_size=256, cell=cell, block_size=64, method=method, implementation="reference"
    )

    def flops(config):
        lm = language_model(config)
        step = jax.jit(lambda params, tokens, carry: lm.apply(params, tokens, carry)[:2])
        arguments = jax.eval_shape(lm.init, jax.random.key(0)), jnp.zeros((1, 1), jnp.int32), lm.init_carry(1)
        return step.lower(*arguments).compile().cost_analysis()["flops"]

    if method == "dense":
        assert flops(config) == pytest.approx(2 * cost(config).total, rel=0.05)
    else:
        gates = flops(config) - flops(dataclasses.replace(config, gate_source="bias"))
        assert gates == pytest.approx(2 * cost(config).gates, rel=0.05)


sizes = st.fixed_dictionaries(
    {
        "cell": st.sampled_from(["lstm", "qrnn"]),
        "num_layers": st.integers(1, 4),
        "vocab_size": st.integers(1000, 300_000),
        "sparsity": st.floats(0, 0.99),
        "gate_rank": st.none() | st.integers(1, 64),
        "hidden_size": st.integers(4, 32).map(lambda n: 64 * n),
        "block_size": st.sampled_from([32, 64]),
        "method": st.sampled_from(["dynamic", "dense", "magnitude"]),
    }
)


@given(sizes)
def test_dense_of_equal_cost(options):
    config = ModelConfig(**options)
    dense = equal_cost_dense(config)
    assert dense.method == "dense"
    assert dataclasses.replace(dense, method=config.method, hidden_size=config.hidden_size) == config
    assert cost(dense).total == pytest.approx(cost(config).total, rel=0.01)
    off = lambda h: abs(cost(dataclasses.replace(dense, hidden_size=h)).total - cost(config).total)  # noqa: E731
    assert off(dense.hidden_size) <= min(off(dense.hidden_size - 1), off(dense.hidden_size + 1))
    if config.method == "dense":
        assert dense == config


def test_dense_of_equal_cost_of_a_whole_configuration():
    config = PRESETS["ptb-lstm"]
    dense = equal_cost_dense(config)
    assert dense == dataclasses.replace(config, model=equal_cost_dense(config.model))
    assert dense.model.hidden_size == 1255


def test_no_dense_model_of_equal_cost_is_an_error():
    tiny = ModelConfig(vocab_size=2, hidden_size=8, block_size=4, sparsity=0.9)
    with pytest.raises(ValueError, match=r"No dense model comes within 1% of [\d,]+ multiply-adds"):
        equal_cost_dense(tiny)
