"""The benchmarks that take times: they run and write lines with figures; mistakes at the command line are sentences."""

import argparse
import functools
import importlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import bounds, environment
from benchmarks.command import a_file, a_folder, script
from benchmarks.measure import baselines, calls, kernels, train_step
from benchmarks.measure.train_step import resized
from bwds.config import Config, DataConfig, ModelConfig
from bwds.timing import time_in_turns

ROOT = Path(__file__).parents[1]
TINY = ["--hidden", "32", "--sparsity", "0.5"]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs a benchmark by its ``main``; the lines that it wrote, by kind. What it measures first is small."""

    def run(name, *arguments):
        module, output = importlib.import_module(f"benchmarks.measure.{name}"), tmp_path / "lines.jsonl"
        short = {
            "matmul_rate": functools.partial(bounds.matmul_rate, size=64),
            "copy_bandwidth": functools.partial(bounds.copy_bandwidth, megabytes=1),
        }
        for function, smaller in short.items():
            if hasattr(module, function):
                monkeypatch.setattr(module, function, smaller)
        quick = functools.partial(time_in_turns, least=1e-4)
        monkeypatch.setattr(calls, "time_in_turns", lambda cases, turns=3: quick(cases, turns=turns))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments, "--output", str(output)])
        module.main()
        found = {}
        for line in output.read_text().splitlines():
            row = json.loads(line)
            found.setdefault(row["benchmark"], []).append(row)
        return found

    return run


def assert_times(row, *names, unit="us"):
    """Each has a median within its quartiles."""
    for name in names:
        low, median, high = row[f"{name}_quartiles_{unit}"]
        assert 0 < low <= median <= high < math.inf
        assert row[f"{name}_{unit}"] == pytest.approx(median, rel=1e-4)


def test_products_of_few_rows(command):
    arguments = ["--block", "16", "--sparsity", "0.75", "--hidden", "32", "--rotate-mib", "0.01"]
    found = command("kernels", "decode", *arguments, "--dtype", "bfloat16")
    assert found["environment"][0]["cores"] >= 1
    assert [row["rows"] for row in found["decode"]] == [1, 4, 16]
    for row in found["decode"]:
        assert_times(row, "dense", "dense_float32", "product", "layer")
        assert 0 < row["bound_us"] < row["layer_bound_us"] < math.inf
        assert row["speedup_product"] == pytest.approx(row["dense_us"] / row["product_us"], rel=1e-3)
        ratio = row["dense_float32_us"] / row["layer_us"]
        assert row["speedup_layer_over_dense_float32"] == pytest.approx(ratio, rel=1e-3)
    # 4 of 16 blocks of 16 x 16 are kept for one row: 2 KiB, six times in 10.2 KiB.
    assert [found["decode"][0][key] for key in ("share_read", "copies")] == [0.25, 6]


def test_products_of_many_rows(command):
    size = ("--block", "16", "--hidden", "32", "--rows", "8", "40")
    found = command("kernels", "batched", *size, "--sparsity", "0.5", "0.75")["batched"]
    assert [(row["rows"], row["sparsity"]) for row in found] == [(8, 0.5), (8, 0.75), (40, 0.5), (40, 0.75)]
    for row in found:
        assert_times(row, "dense", "sparse")
        assert row["sparse_over_dense"] == pytest.approx(row["sparse_us"] / row["dense_us"], rel=1e-3)
        assert 0 < row["bound_us"] < math.inf


def test_sharded_products_are_those_of_one_device(command):
    args = argparse.Namespace(sparsity=[0.5], block=16, implementation=None, devices=8)
    x, w, _, gate = kernels.arrays(2, 64, 16, "float32", 2)
    options = kernels.GateOptions((4, 16))
    gates = {0.5: kernels.topk_gates(kernels.gate_scores(gate, x, options.grid), sparsity=0.5)}
    copies = {"product": 2, "dense": 1}
    one, many = (
        {
            name: [function(*inputs, weight) for weight in weights]
            for name, (function, inputs, weights) in place(args, options, x, w, gate, gates, copies).items()
        }
        for place in (kernels.on_one_device, kernels.on_several_devices)
    )
    dense = many.pop("dense_sharded")
    np.testing.assert_allclose(dense[0], one["dense"][0], rtol=1e-5, atol=1e-5)
    assert one.keys() == many.keys()
    for name, results in one.items():
        for mine, other in zip(results, many[name], strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)
    # The layer is the product with the gates of its scores.
    np.testing.assert_allclose(one["layer", 0.5][1], one["product", 0.5][0], rtol=1e-5, atol=1e-5)


def test_calls_in_one_program_are_all_made_one_after_the_other(command):
    made = []

    @jax.jit
    def function(x, scale, weight):
        jax.debug.callback(lambda w: made.append(int(w)), weight)
        return x * scale, weight

    weights = [jnp.float32(i) for i in range(3)]
    total = calls.chained(function, (jnp.ones(2), jnp.float32(2.0)), weights, turns=2)[1]
    jax.effects_barrier()
    # Each call shows the first number of both results: 2 for x * scale, and the weight.
    assert total == 3 * 2 + 0 + 1 + 2
    assert sorted(made) == [0, 0, 1, 1, 2, 2]


def test_whole_models(command):
    small = [
        "--cell",
        "qrnn",
        "--layers",
        "1",
        "--block",
        "16",
        "--vocab",
        "20",
        "--batch",
        "2",
        "--steps",
        "2",
        "--turns",
        "3",
    ]
    (row,) = command("decode", *TINY, *small, "--dtype", "bfloat16")["model_decode"]
    assert_times(row, "dense", "dense_float32", "dynamic")
    assert 0 < row["bound_us"] < row["dense_bound_us"] * 2 < math.inf
    assert 0.5 <= row["share_read"] <= 1
    ratio = row["dense_float32_us"] / row["dynamic_us"]
    assert row["speedup_over_dense_float32"] == pytest.approx(ratio, rel=1e-3)
    assert row["dynamic_tokens_per_second"] == pytest.approx(2e6 / row["dynamic_us"], rel=1e-3)


def test_gates_that_are_learned_and_norms_take_turns_with_one_dense_model(command):
    small = ["--cell", "lstm", "--layers", "1", "--block", "16", "--vocab", "20", "--steps", "2", "--turns", "3"]
    sources = ["--gate-source", "learned", "norm", "--gate-rank", "2", "--batch", "1"]
    rows = command("decode", *TINY, *small, *sources)["model_decode"]
    assert [(row["gate_source"], row["gate_rank"]) for row in rows] == [("learned", 2), ("norm", None)]
    assert rows[0]["dense_us"] == rows[1]["dense_us"]
    for row in rows:
        assert_times(row, "dense", "dynamic")


@pytest.mark.parametrize("cell", ["lstm", "qrnn"])
def test_the_profile_of_a_token_has_every_part(command, cell):
    arguments = ["--cell", cell, "--hidden", "64", "--block", "16", "--gate-rank", "8", "--sparsity", "0.5"]
    (row,) = command("token_profile", *arguments)["token_profile"]
    assert_times(row, "token")
    parts = [row[f"{name}_us"] for name in ("scores", "choice", "product", "softmax", "rest")]
    assert all(part > 0 for part in parts)
    assert row["traced_us"] == pytest.approx(sum(parts), rel=1e-3)


def test_training_steps(command, monkeypatch):
    model = ModelConfig(vocab_size=20, cell="qrnn", num_layers=1, block_size=32)
    monkeypatch.setitem(train_step.PRESETS, "tiny", Config(model, DataConfig(batch_size=2, sequence_length=3)))
    arguments = ["tiny", "--hidden", "32", "--sparsity", "0.5", "0.75", "--turns", "3"]
    rows = command("train_step", *arguments)["train_step"]
    assert [row["sparsity"] for row in rows] == [0.5, 0.75]
    for row in rows:
        assert (row["hidden"], row["block"], row["dtype"]) == (32, 32, "float32")
        assert_times(row, "dense", "dynamic", unit="ms")
        assert row["dynamic_over_dense"] == pytest.approx(row["dynamic_ms"] / row["dense_ms"], rel=1e-3)
        assert 0 < row["dense_bound_ms"] < row["bound_ms"] < math.inf


def test_another_width_has_blocks_of_128_where_they_fit(command):
    widths = {hidden: train_step.resized("ptb-lstm-small", hidden, None).model for hidden in (None, 96, 1536)}
    assert [(m.hidden_size, m.block_size) for m in widths.values()] == [(256, 32), (96, 32), (1536, 128)]


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pytorch_beside_ours(command, dtype):
    pytest.importorskip("torch", reason="the baseline needs the extra bench")
    config = resized("ptb-lstm-small", 16, dtype)
    tokens = np.random.default_rng(0).integers(config.model.vocab_size, size=(4, 6), dtype=np.int32)
    calls = baselines.training(config, tokens)
    if dtype == "bfloat16" and not calls:
        pytest.skip("PyTorch has no LSTM in bfloat16 for this CPU")
    step = calls["pytorch"]
    losses = [step() for _ in range(20)]
    assert losses[0] == pytest.approx(math.log(config.model.vocab_size), rel=0.05)
    assert losses[-1] < losses[0] - 0.1
    first = np.arange(3)
    decoded = [call() for call in baselines.baseline(config.model, first, 2).values()]
    assert [words.shape for words in decoded] == [(3, 2)] * 2


MISTAKES = {
    ("kernels", "--hidden", "0"): "--hidden is 0; it must be at least 1",
    ("kernels", "--hidden", "100"): "--hidden 100 is not a multiple of --block 128",
    ("kernels", "--sparsity", "1"): "sparsity is 1.0",
    ("kernels", "--block", "0"): "--block is 0; it must be at least 1",
    ("kernels", "--rotate-mib", "nan"): "--rotate-mib is nan; it must be at least 0",
    ("kernels", "decode", "--devices", "0"): "--devices is 0; it must be at least 1",
    ("kernels", "decoding"): "Part decoding is unknown",
    ("decode", "--batch", "0"): "--batch is 0; it must be at least 1",
    ("decode", "--hidden", "0"): "--hidden is 0; it must be at least 1",
    ("decode", "--hidden", "100"): "hidden_size 100 is not a multiple of block_size 128",
    ("decode", "--sparsity", "1"): "sparsity is 1.0",
    ("decode", "--max-gib", "nan"): "--max-gib is nan; it must be above 0",
    ("decode", "--turns", "2"): "The number of turns is 2; quartiles need at least 3",
    ("train_step", "--hidden", "0"): "--hidden is 0; it must be at least 1",
    ("train_step", "--hidden", "100"): "hidden_size 100 is not a multiple of block_size 32",
    ("train_step", "--sparsity", "1"): "sparsity is 1.0",
    ("train_step", "--turns", "2"): "The number of turns is 2; quartiles need at least 3",
    ("train_step", "nothing"): "Preset nothing is unknown",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_a_sentence_and_writes_nothing(command, arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        script(functools.partial(command, *arguments))
    assert end.value.code == 2
    assert MISTAKES[arguments] in capsys.readouterr().err
    assert not (tmp_path / "lines.jsonl").exists()


def test_the_environment_says_how_to_run_it_again(command, monkeypatch):
    found = environment.environment()
    assert len(found["revision"]) == 40
    assert found["modified"] in (True, False)
    if sys.platform == "linux":
        assert set(found["instructions"]) <= set(environment.INSTRUCTIONS)
        assert re.fullmatch(r"(\d+[KM])?", found["cache"])
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: {3, 1})
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 4)
    assert environment.environment()["command"].startswith("taskset -c 1,3 python ")
    monkeypatch.setattr(environment.os, "cpu_count", lambda: 2)
    assert environment.environment()["command"].startswith("python ")


def test_a_revision_that_nobody_can_tell_is_unknown(command, monkeypatch, tmp_path):
    unknown = {"revision": "unknown", "modified": False}
    # A copy without a history: by itself, and in the repository of something else.
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "benchmarks" / "environment.py"))
    assert environment.revision() == unknown
    person = ["-c", "user.name=a", "-c", "user.email=b"]
    for words in (["init", "-q"], [*person, "commit", "-q", "--allow-empty", "-m", "other"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert environment.revision() == unknown
    monkeypatch.setenv("PATH", str(tmp_path))  # no git
    assert environment.environment().items() >= unknown.items()


@pytest.mark.parametrize("kind", [a_folder, a_file])
def test_an_output_is_no_address(kind):
    with pytest.raises(argparse.ArgumentTypeError, match="is 'gs://bucket/x', an address"):
        kind("gs://bucket/x")


def test_every_benchmark_answers_errors_in_one_place():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        _, found, end = path.read_text().partition('if __name__ == "__main__":\n')
        assert not found or end == "    script(main)\n" or end.splitlines()[-1].startswith("    sys.exit(run(main, ")
