"""Multiply-adds and bytes against counts by hand."""

import pytest

from bwds import PRESETS, ModelConfig, cost


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
    assert made.bytes_read == 2 * (made.total + 64)


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


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_cheaper_than_dense(name):
    assert cost(PRESETS[name]).relative < 1.0
