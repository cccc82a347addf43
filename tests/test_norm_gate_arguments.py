"""Arguments that do not fit blocks chosen by norms: what is refused, and in which sentence."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from bwds import ModelConfig, decode_params, gate_scores, init_gate, language_model, nn
from bwds.linear import GateOptions, init_linear, with_norms

R, C, BK, BN = 5, 3, 4, 6
K, N = R * BK, C * BN
KEY = jax.random.key(0)
CONFIG = ModelConfig(vocab_size=30, hidden_size=32, block_size=8, gate_source="norm")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda: ModelConfig(gate_source="norm", gate_rank=8), "gate_rank is 8; .*'norm' has no projection"),
        (lambda: ModelConfig(gate_source="norm", gate_normalization="bounded"), "gate_normalization is 'bounded'"),
        (lambda: ModelConfig(gate_source="norm", gate_normalization="none"), "gate_normalization is 'none'; .*'mean'"),
        (lambda: nn.LSTM(128, gate_source="norm", gate_rank=8, rngs=nnx.Rngs(0)), "gate_rank is 8"),
        (
            lambda: nn.BlockSparseLinear(128, 128, gate_source="norm", gate_rank=8, rngs=nnx.Rngs(0)),
            "gate_rank is 8",
        ),
        (
            lambda: nn.BlockSparseLinear(128, 128, gate_source="size", rngs=nnx.Rngs(0)),
            "gate_source is 'size'; .*learned, norm",
        ),
        (lambda: init_gate(KEY, K, R * C, 2, "norm"), "gate_rank is 2"),
        (lambda: gate_scores({}, jnp.ones((2, K)), (R, C), "norm"), "need the weight, as w, or its norms"),
        (
            lambda: gate_scores({"norms": jnp.ones((C, R))}, jnp.ones((2, K)), (R, C), "norm"),
            r"params have shapes .*\(3, 5\).*'norms': \(5, 3\)",
        ),
        (
            lambda: gate_scores({"norms": jnp.ones((R, C))}, jnp.ones((2, K)), (R, C), "norm", w=jnp.ones((K, N))),
            "params hold norms and w is given",
        ),
        (lambda: gate_scores({}, jnp.ones((2, K)), (R, C), "norm", w=jnp.ones((N, K))), r"w has shape \(18, 20\)"),
        (lambda: gate_scores({}, jnp.ones((2, K)), (R, C), "norm", w=jnp.ones((K, N - 1))), r"w has shape \(20, 17\)"),
        (lambda: gate_scores({}, jnp.ones((2, K)), (R, C), "norm", w=jnp.ones((R, C, BK, BN))), "or block-major"),
        (lambda: gate_scores({}, jnp.ones((2, K)), (R, C), "norm", w=jnp.ones(K)), r"w has shape \(20,\)"),
        (lambda: gate_scores({}, jnp.ones((2, K)), (R, C), "norm", w=[1.0]), "w is a list"),
        (lambda: gate_scores({}, jnp.ones((2, K + 1)), (R, C), "norm", w=jnp.ones((K, N))), "x has 21 features"),
        (
            lambda: gate_scores(init_gate(KEY, K, R * C), jnp.ones((2, K)), (R, C), w=jnp.ones((K, N))),
            "w is for the source 'norm'",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(function, named):
    with pytest.raises(ValueError, match=f"(?s){named}.*\\."):
        function()


@pytest.mark.usefixtures("unchecked")
def test_norms_in_a_model_without_them_are_refused():
    params = decode_params(language_model(CONFIG).init(KEY), CONFIG)
    other = dataclasses.replace(CONFIG, gate_source="random")
    with pytest.raises(
        ValueError,
        match=r"params hold layer_0/.*/gate/norms; .*'random' have no use for it",
    ):
        decode_params(params, other)
    wider = dataclasses.replace(CONFIG, block_size=16)
    with pytest.raises(ValueError, match=r"norms of shape \(4, 16\).*need \(2, 8\)"):
        decode_params(with_norms(language_model(CONFIG).init(KEY), CONFIG.block_shape), wider)


def test_other_methods_have_no_gate_to_refuse():
    assert ModelConfig(method="dense", gate_source="norm", gate_rank=8).gate_rank == 8
    params = init_linear(KEY, 16, 16, bound=0.1, options=GateOptions((2, 2), source="norm"), gate_rank=None)
    assert params["gate"] == {}
