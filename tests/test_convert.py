"""Dense models made dynamic: budgets of matrices, the conversion, and training from there."""

import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiny_run
from flax import nnx

import bwds
from bwds import ModelConfig, cost, decode_params, language_model
from bwds.budgets import matrix_sparsity
from bwds.config import Config
from bwds.convert import layer_inputs, share_blocks
from bwds.nn import BlockSparseLinear
from bwds.training import train
from bwds.training.devices import MeshConfig
from bwds.training.metrics import read_metrics
from bwds.training.signals import InterruptedRunError, StopSignals
from bwds.training.trained import load_params
from bwds.training.workdir import read_config

V, H = 20, 16
DENSE = ModelConfig(vocab_size=V, hidden_size=H, num_layers=2, block_size=4, method="dense", init_bound=0.4)
TOKENS = np.random.default_rng(0).integers(0, V, (3, 17)).astype(np.int32)
BUDGETS = (("layer_0/input", 0.75), ("layer_0/hidden", 0.25), ("layer_1/input", 0.0), ("layer_1/hidden", 0.5))
SHARED = dataclasses.replace(DENSE, method="dynamic", gate_source="norm", sparsity=0.375, sparsities=BUDGETS)


def logits(params, config, tokens=TOKENS, **options):
    lm = language_model(config)
    return lm.apply(params, tokens, lm.init_carry(len(tokens)), **options)


def parameters(config):
    return language_model(config).init(jax.random.key(0))


# Budgets --------------------------------------------------------------------------------------------------------------


def test_each_matrix_keeps_the_blocks_of_its_own_sparsity():
    _, _, info = logits(parameters(SHARED), SHARED)
    kept = {name: float(used.mean()) for name, used in info.usage.items()}
    assert kept == pytest.approx({name: 1.0 - sparsity for name, sparsity in BUDGETS})
    assert float(info.density) == pytest.approx(0.625)


@pytest.mark.parametrize("sparsity", [0.0, 0.2, 0.375, 0.6, 0.9])
def test_for_another_sparsity_shares_are_scaled_and_their_mean_is_it(sparsity):
    found = [matrix_sparsity(SHARED, name, sparsity) for name in SHARED.matrices]
    assert np.mean(found) == pytest.approx(sparsity)
    assert all(0.0 <= share < 1.0 for share in found)
    assert [a <= b for a, b in itertools.permutations(found, 2)] == [
        a <= b or sparsity == 0.0 for a, b in itertools.permutations([b for _, b in BUDGETS], 2)
    ]
    traced = jax.jit(lambda s: [matrix_sparsity(SHARED, name, s) for name in SHARED.matrices])(jnp.float32(sparsity))
    np.testing.assert_allclose(traced, found, rtol=0, atol=1e-6)


def test_a_traced_sparsity_and_one_for_each_matrix_give_what_the_configuration_gives():
    params = parameters(SHARED)
    wanted = logits(params, SHARED)[0]
    plain = dataclasses.replace(SHARED, sparsities=None)
    run = jax.jit(lambda s: logits(params, SHARED, sparsity=s)[0])
    each = {name: jnp.float32(s) for name, s in BUDGETS}
    np.testing.assert_allclose(run(jnp.float32(0.375)), wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda s: logits(params, plain, sparsity=s)[0])(each), wanted, rtol=0, atol=1e-5)
    other = dataclasses.replace(SHARED, sparsity=0.7)
    np.testing.assert_allclose(run(jnp.float32(0.7)), logits(params, other)[0], rtol=0, atol=1e-5)
    assert np.abs(logits(params, other)[0] - wanted).max() > 1e-3
    with pytest.raises(ValueError, match=r"names layer_0/input; it must have one number for each of layer_0/in"):
        logits(params, SHARED, sparsity={"layer_0/input": 0.5})
    with pytest.raises(ValueError, match=r"sparsity is 1.5"):
        logits(params, SHARED, sparsity=1.5)


def test_cost_counts_what_each_matrix_keeps():
    whole = H * 4 * H
    assert cost(SHARED).blocks == whole * sum(1.0 - sparsity for _, sparsity in BUDGETS)
    assert cost(SHARED).blocks == cost(dataclasses.replace(SHARED, sparsities=None)).blocks
    by_column = dataclasses.replace(SHARED, gate_scope="column")
    assert cost(by_column).blocks == cost(SHARED).blocks


def test_a_configuration_with_budgets_goes_through_json():
    config = Config(model=SHARED)
    there = Config.from_json(config.to_json())
    assert there == config
    assert hash(there.model) == hash(SHARED)
    older = json.loads(config.to_json())
    del older["model"]["sparsities"]
    assert Config.from_json(json.dumps(older)).model == dataclasses.replace(SHARED, sparsities=None)


@pytest.mark.parametrize(
    "wrong",
    [
        BUDGETS[:3],
        (*BUDGETS[:3], ("layer_1/gate", 0.5)),
        (*BUDGETS[:3], ("layer_1/hidden", 1.0)),
        (*BUDGETS, BUDGETS[0]),
        (0.5, 0.5, 0.5, 0.5),
        {"layer_0/input": 0.5},
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_budgets_that_do_not_fit_the_matrices_are_refused(wrong):
    with pytest.raises(ValueError, match=r"sparsities are .* one for each of layer_0/input, layer_0/|sparsity is 1"):
        dataclasses.replace(SHARED, sparsities=wrong)


@pytest.mark.parametrize(
    ("cell", "dtype"),
    [("lstm", "float32"), pytest.param("lstm", "bfloat16", marks=pytest.mark.slow), ("qrnn", "float32")],
)
def test_laid_out_for_decoding_it_is_the_same_model(cell, dtype):
    config = dataclasses.replace(SHARED, cell=cell, dtype=dtype, num_layers=4 if cell == "qrnn" else 2, sparsities=None)
    config = dataclasses.replace(config, sparsities=tuple(zip(config.matrices, (0.75, 0.25, 0.0, 0.5), strict=True)))
    params = parameters(config)
    laid_out = decode_params(params, config)
    wanted = logits(params, config)[0]
    np.testing.assert_allclose(logits(laid_out, config)[0], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    one_by_one, carry, lm = [], language_model(config).init_carry(3), language_model(config)
    for t in range(4):
        step, carry, _ = lm.apply(laid_out, TOKENS[:, t : t + 1], carry)
        one_by_one.append(step[:, 0])
    tolerance = 1e-5 if dtype == "float32" else 0.05
    np.testing.assert_allclose(
        np.stack(one_by_one, 1), wanted[:, :4], rtol=0, atol=tolerance * float(np.abs(wanted).max())
    )


# The conversion -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "qrnn"])
def test_with_all_blocks_it_is_the_dense_model(cell, tied):
    dense = dataclasses.replace(DENSE, cell=cell, tied_softmax=tied)
    params = language_model(dense).init(jax.random.key(0))
    converted, config = bwds.convert(params, dense, sparsity=0.0, tokens=TOKENS)
    assert (config.method, config.gate_source) == ("dynamic", "norm")
    assert not np.array_equal(converted["embedding"], params["embedding"])
    wanted, _, _ = logits(params, dense)
    found, _, info = logits(converted, config)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert float(info.density) == 1.0


@pytest.mark.parametrize(
    ("cell", "sparsity", "scope"), [("lstm", 0.5, "matrix"), ("lstm", 0.3, "column"), ("qrnn", 0.75, "matrix")]
)
def test_the_cost_is_that_of_equal_shares_and_the_calibration_loss_no_higher(cell, sparsity, scope):
    dense = dataclasses.replace(DENSE, cell=cell, gate_scope=scope)
    params = language_model(dense).init(jax.random.key(1))
    converted, equal = bwds.convert(params, dense, sparsity=sparsity, tokens=TOKENS, budgets=False)
    config = share_blocks(converted, equal, TOKENS)
    assert cost(config) == cost(equal)
    assert config.sparsity == equal.sparsity == sparsity
    assert len({share for _, share in config.sparsities}) > 1

    def loss(config):
        found = jax.nn.log_softmax(logits(converted, config, TOKENS[:, :-1])[0])
        return -np.take_along_axis(np.asarray(found), TOKENS[:, 1:, None], -1).mean()

    assert loss(config) <= loss(equal) + 1e-3
    again = share_blocks(converted, equal, TOKENS)
    assert again == config


def test_the_matrix_that_does_nothing_gives_its_blocks_first():
    params = language_model(DENSE).init(jax.random.key(0))
    params["layer_1"]["hidden"]["kernel"] *= 1e-4
    _, config = bwds.convert(params, DENSE, sparsity=0.2, tokens=TOKENS)
    shares = dict(config.sparsities)
    assert shares["layer_1/hidden"] == max(shares.values()) > 0.6


def test_grouped_it_is_closer_to_the_dense_model():
    """Units of the embedding that are active in two crowds, by turns."""
    params = language_model(DENSE).init(jax.random.key(0))
    rng = np.random.default_rng(0)
    crowd, word = rng.permutation(H) < H // 2, np.arange(V) % 2 == 0
    table = rng.normal(size=(V, H)) * np.where(word[:, None] == crowd[None, :], 1.0, 0.02)
    params["embedding"] = jnp.asarray(table, jnp.float32)
    wanted = logits(params, DENSE)[0]

    def error(group):
        converted, config = bwds.convert(
            params, DENSE, sparsity=0.5, tokens=TOKENS, block_size=8, group=group, budgets=False
        )
        return float(np.square(logits(converted, config)[0] - wanted).mean())

    assert error(True) < 0.8 * error(False)


def test_what_layers_read_is_what_the_model_computes():
    params = language_model(DENSE).init(jax.random.key(0))
    *_, last = layer_inputs(params, DENSE, jnp.asarray(TOKENS))
    kernel, bias = np.asarray(params["softmax"]["kernel"]), np.asarray(params["softmax"]["bias"])
    np.testing.assert_allclose((last @ kernel + bias).reshape(3, 17, V), logits(params, DENSE)[0], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("config", "options", "named"),
    [
        (dataclasses.replace(DENSE, method="dynamic"), {}, "method is 'dynamic'; only a model without gates"),
        (DENSE, {"sparsity": 1.0}, "sparsity is 1.0"),
        (DENSE, {"tokens": TOKENS[:, :1]}, r"tokens have shape \(3, 1\)"),
        (DENSE, {"tokens": TOKENS + V}, "the ids of 20 tokens go from 0 to 19"),
        (DENSE, {"block_size": 5}, "hidden_size 16 is not a multiple of block_size 5"),
        (DENSE, {"block_size": 16, "sparsity": 0.9}, "of the 1 x 4 blocks of layer_0/input at least 1 .* at most 0.75"),
    ],
)
def test_what_cannot_be_converted_is_refused(config, options, named):
    params = language_model(DENSE).init(jax.random.key(0))
    with pytest.raises(ValueError, match=named):
        bwds.convert(params, config, **{"sparsity": 0.5, "tokens": TOKENS} | options)


def test_parameters_that_are_no_numbers_are_refused():
    params = language_model(DENSE).init(jax.random.key(0))
    params["layer_0"]["bias"] = params["layer_0"]["bias"].at[3].set(jnp.inf)
    with pytest.raises(ValueError, match="params hold numbers in layer_0/bias that are not finite"):
        bwds.convert(params, DENSE, sparsity=0.5, tokens=TOKENS)


# One layer ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_linear_layer_with_all_blocks_is_the_dense_one(use_bias):
    dense = nnx.Linear(16, 24, use_bias=use_bias, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 16)), jnp.float32)
    layer = BlockSparseLinear.from_linear(dense, sparsity=0.0, block_shape=(4, 8))
    np.testing.assert_array_equal(layer(x), dense(x))
    half = BlockSparseLinear.from_linear(dense, block_shape=(4, 8), return_gates=True)
    y, gates = half(x)
    kernel, bias = np.asarray(dense.kernel[...]), 0.0 if dense.bias is None else np.asarray(dense.bias[...])
    rule = oracle.Rule(4, 3, 6, source="norm")
    wanted, wanted_gates, _ = oracle.product({"kernel": oracle.f64(kernel)}, oracle.f64(x), rule)
    np.testing.assert_array_equal(gates, wanted_gates)
    np.testing.assert_allclose(y, wanted + bias, rtol=0, atol=1e-5)
    assert nnx.state(layer, nnx.Param).keys() == ({"kernel", "bias"} if use_bias else {"kernel"})


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_linear_layer_is_refused():
    with pytest.raises(ValueError, match=r"dense is a Conv; it must be a flax.nnx.Linear"):
        BlockSparseLinear.from_linear(nnx.Conv(4, 4, (3,), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"dense is a LoRALinear; it must be a flax.nnx.Linear"):
        BlockSparseLinear.from_linear(nnx.LoRALinear(16, 16, lora_rank=2, rngs=nnx.Rngs(0)), block_shape=(4, 4))
    half = nnx.Linear(16, 16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="the kernel is of bfloat16; parameters must be float32"):
        BlockSparseLinear.from_linear(half, block_shape=(4, 4))


# Training that starts from another run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dense_run(corpus, tmp_path_factory):
    """Folder and configuration of a dense run."""
    workdir = tmp_path_factory.mktemp("run") / "dense"
    config = tiny_run.config(corpus, method="dense", dropout=0.0, weight_dropout=0.0, ema_decay=0.0)
    return workdir, config, train(config, workdir, progress=False)


def converted_run(config, **changes):
    sections = {"steps": "train", "eval_every": "train", "checkpoint_every": "train"}
    model = {name: value for name, value in changes.items() if name not in sections}
    steps = {name: value for name, value in changes.items() if name in sections}
    model = {"method": "dynamic", "gate_source": "norm", "sparsity": 0.5} | model
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, **model), train=dataclasses.replace(config.train, **steps)
    )


def test_without_steps_it_converts_and_evaluates(dense_run, tmp_path):
    folder, config, dense = dense_run
    summary = train(converted_run(config, steps=0, sparsity=0.0), tmp_path / "all", start_from=folder, progress=False)
    assert summary["steps"] == summary["best_step"] == 0
    assert summary["validation_perplexity"] == pytest.approx(dense["validation_perplexity"], rel=1e-4)
    half = train(converted_run(config, steps=0), tmp_path / "half", start_from=folder, progress=False)
    assert half["realised_density"] == pytest.approx(0.5)
    there = read_config(tmp_path / "half")
    assert there.train.start_sha256 is not None
    assert there.model.gate_source == "norm"
    assert np.mean([share for _, share in there.model.sparsities]) == pytest.approx(0.5)
    (line,) = read_metrics(tmp_path / "half/metrics.jsonl")
    assert (line["step"], line["split"]) == (0, "valid")
    # Once more: the finished run's summary.
    again = train(converted_run(config, steps=0), tmp_path / "half", start_from=folder, progress=False)
    assert again == half


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(dense_run, tmp_path, monkeypatch):
    folder, config, _ = dense_run
    config = converted_run(config, steps=6, checkpoint_every=2)
    whole = train(config, tmp_path / "whole", start_from=folder, progress=False)
    assert [line["step"] for line in read_metrics(tmp_path / "whole/metrics.jsonl") if line["split"] == "valid"] == [
        0,
        3,
        6,
    ]
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    for stop in range(20):
        with monkeypatch.context() as patch:
            calls = iter(range(10**6))
            check = StopSignals.check
            patch.setattr(StopSignals, "requested", property(lambda self, calls=calls: next(calls) >= 1))

            def interrupt(self, check=check):
                check(self)
                raise InterruptedRunError(15, "stop")

            if stop < 3:
                patch.setattr(StopSignals, "check", interrupt)
            else:
                patch.undo()
            try:
                summary = train(config, tmp_path / "parts", start_from=moved, progress=False)
                break
            except InterruptedRunError:
                continue
    assert stop >= 3
    assert summary["parameters_sha256"] == whole["parameters_sha256"]


def test_it_starts_from_what_the_other_run_kept(dense_run, tmp_path):
    """Without another method nothing is converted: the first evaluation is that of the run it starts from."""
    folder, config, dense = dense_run
    summary = train(converted_run(config, method="dense", steps=0), tmp_path, start_from=folder, progress=False)
    assert summary["validation_perplexity"] == pytest.approx(dense["validation_perplexity"], rel=1e-6)
    ended = dataclasses.replace(read_config(tmp_path), data=read_config(folder).data)
    started, _ = load_params(ended, tmp_path, "best")
    best, _ = load_params(read_config(folder), folder, "best")
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, started, best)))


def test_from_a_converted_run_another_sparsity_scales_the_budgets(dense_run, tmp_path):
    folder, config, _ = dense_run
    train(converted_run(config, steps=0), tmp_path / "half", start_from=folder, progress=False)
    shares = dict(read_config(tmp_path / "half").model.sparsities)
    quarter = converted_run(config, steps=0, sparsity=0.25)
    train(quarter, tmp_path / "less", start_from=tmp_path / "half", progress=False)
    less = dict(read_config(tmp_path / "less").model.sparsities)
    assert less == pytest.approx({name: 0.5 * share for name, share in shares.items()})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 64}, "its hidden_size is 32, here it is 64. Give the same."),
        ({"cell": "qrnn"}, "its cell is 'lstm', here it is 'qrnn'"),
        ({"gate_source": "learned"}, "it has no gates, and the gate_source 'learned' needs trained ones"),
        ({"method": "static-block"}, "a static-block model keeps other weights"),
    ],
)
def test_what_cannot_be_started_from_is_refused(dense_run, tmp_path, changes, named):
    folder, config, _ = dense_run
    with pytest.raises(ValueError, match=named):
        train(converted_run(config, **changes), tmp_path / "run", start_from=folder, progress=False)


def test_other_starts_are_refused(dense_run, tmp_path):
    folder, config, _ = dense_run
    config = converted_run(config, steps=0)
    with pytest.raises(ValueError, match="There is no run in"):
        train(config, tmp_path / "run", start_from=tmp_path / "nothing", progress=False)
    with pytest.raises(ValueError, match="start_from is the run's own folder"):
        train(config, folder, start_from=folder, progress=False)
    with pytest.raises(ValueError, match="steps is 0; it must be at least 1"):
        train(config, tmp_path / "run", progress=False)
    words = dataclasses.replace(config, data=dataclasses.replace(config.data, vocab_limit=10))
    with pytest.raises(ValueError, match="another vocabulary than this text: 31 tokens there, "):
        train(words, tmp_path / "run", start_from=folder, progress=False)
    train(config, tmp_path / "run", start_from=folder, progress=False)
    with pytest.raises(ValueError, match=r"train.start_sha256: '.*' there, None now"):
        train(dataclasses.replace(config, train=dataclasses.replace(config.train, steps=3)), tmp_path / "run")


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_on_a_mesh_it_is_the_same(dense_run, tmp_path):
    """Columns over two devices."""
    folder, config, _ = dense_run
    config = converted_run(config, steps=3)
    alone = train(config, tmp_path / "alone", start_from=folder, progress=False)
    spread = train(config, tmp_path / "spread", start_from=folder, mesh=MeshConfig(1, 2), progress=False)
    assert spread["validation_perplexity"] == pytest.approx(alone["validation_perplexity"], rel=1e-4)
    one, other = (load_params(read_config(tmp_path / name), tmp_path / name, "last")[0] for name in ("alone", "spread"))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-4)
    start, _ = load_params(read_config(tmp_path / "alone"), tmp_path / "alone", "best")
    assert start.keys() == one.keys()
