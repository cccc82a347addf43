"""Training steps compiled for slices of a TPU pod: counts by hand, and those that are committed."""

import dataclasses
import importlib.metadata
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from benchmarks.pod import pod_compile
from benchmarks.pod.tpus import chip_of
from bwds import PRESETS, Config, DataConfig, ModelConfig, OptimConfig, language_model
from bwds.collectives import DATA, MODEL
from bwds.training.sharding import Placement
from pallas_kernels.block_sparse.mosaic_tpu_tiles import plan_tiles

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tpu_pod_compile.jsonl"
LAYERS, TIME, ROWS, HIDDEN, WORDS, GRID = 1, 4, 8, 256, 512, (2, 8)
TINY = Config(
    model=ModelConfig(vocab_size=WORDS, hidden_size=HIDDEN, num_layers=LAYERS, dropout=0.1),
    data=DataConfig(sequence_length=TIME),
    optim=OptimConfig(name="sgd", learning_rate=1.0),
)


@pytest.fixture
def pod():
    """The benchmark, as a module."""
    return pod_compile


@pytest.fixture
def libtpu(no_compiler) -> None:
    if importlib.util.find_spec("libtpu") is None:
        no_compiler("The TPU compiler, libtpu, is not installed")


def parameters(config: ModelConfig) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(language_model(config).init, jax.random.key(0))))


# Compiled here --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu", "all_optimizations")
def test_a_data_parallel_step_sends_its_gradients_once(pod):
    line = pod.case(TINY, "v5e:2x2", rows=ROWS)
    size = 4 * parameters(TINY.model)
    assert (line["chips"], line["data"], line["batch"]) == (4, 4, 4 * ROWS)
    assert line["parameter_bytes"] == size
    # The loss and the density go with them.
    assert line["collectives"].keys() == {"all-reduce"}
    assert line["collectives"]["all-reduce"]["bytes"] == size + 8
    assert line["sent_bytes"] == round(2 * (size + 8) * 3 / 4)
    # Each layer: choice and product of both sides, dx and dw of both; those of h in every time step, but dw.
    assert line["kernel_calls"] == LAYERS * (4 + 3 * TIME + 1)
    assert 0 < line["kernel_vmem_used"] <= line["kernel_vmem_limit"]
    # Parameters are read and written, gradients and activations at least once.
    assert line["hbm_traffic"] > 3 * size
    assert line["memory_bytes"] == line["held_bytes"] + line["temporary_bytes"] + line["code_bytes"]
    # A step this small holds its activations in VMEM: there may be no temporaries in HBM.
    assert line["held_bytes"] > size
    assert line["code_bytes"] > 0


@pytest.mark.usefixtures("libtpu", "all_optimizations")
def test_messages_of_columns_that_are_spread(pod):
    """All messages counted by hand; those of the loops over time count in every step."""
    line = pod.case(TINY, "v5e:2x2", rows=ROWS, model=2)
    shares = 4 * parameters(TINY.model) - line["parameter_bytes"]
    blocks, rows = GRID[0] * GRID[1], ROWS * TIME
    gates = 4 * LAYERS * 2 * (HIDDEN + 1) * blocks
    assert shares == (4 * parameters(TINY.model) - gates) / 2
    # Forward, the pre-activations; backward, gradients of the gates of both sides.
    gathered = LAYERS * rows * (4 * HIDDEN + blocks + blocks) * 4 // 2
    assert line["collectives"]["all-gather"]["bytes"] == gathered
    assert line["collectives"]["all-gather"]["sent"] == gathered
    # Along data: gradients. Along model: the embedding, largest and sum of the softmax and its chosen tokens; backward
    # dx of both sides of each layer and of the softmax. Then the norm of the gradients.
    words = 4 * rows * (HIDDEN + 3 + LAYERS * 2 * HIDDEN + HIDDEN)
    reduced = line["collectives"]["all-reduce"]["bytes"] - line["parameter_bytes"] - words
    assert 0 < reduced <= 4 * 30
    assert line["collectives"].keys() == {"all-gather", "all-reduce"}


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu", "all_optimizations")
def test_what_does_not_fit_into_a_chip_is_said(pod):
    with pytest.raises(pod.DoesNotFitError, match="Ran out of memory"):
        pod.case(PRESETS["wikitext103-qrnn"], "v5e:2x2", rows=160)


@pytest.mark.usefixtures("libtpu", "unchecked")
def test_meshes_that_do_not_fit(pod):
    qrnn = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, cell="qrnn"))
    with pytest.raises(ValueError, match="does not divide the 4 chips of v5e:2x2"):
        pod.case(TINY, "v5e:2x2", rows=ROWS, model=3)
    with pytest.raises(ValueError, match="does not divide the 6 columns of blocks"):
        pod.case(qrnn, "v5e:2x2", rows=ROWS, model=4)
    with pytest.raises(ValueError, match="it must be a chip, v5e, v5p, v6e, and a shape"):
        pod.case(TINY, "v4:2x2x1", rows=ROWS)
    with pytest.raises(ValueError, match="'v5e:3x3' is unknown to libtpu"):
        pod.case(TINY, "v5e:3x3", rows=ROWS)


# By hand --------------------------------------------------------------------------------------------------------------


def test_operations_by_hand_are_those_of_the_compiler_where_it_counts_all(pod):
    """A dense QRNN has no kernel, and no product in a loop."""
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, cell="qrnn", method="dense", dropout=0.0))
    config = pod.with_batch(config, one_device(), 16)
    lm = language_model(config.model)
    tokens = jnp.zeros((16, TIME), jnp.int32)

    def loss(params):
        return jax.nn.log_softmax(lm.apply(params, tokens, lm.init_carry(16))[0])[..., 0].mean()

    params = jax.eval_shape(lm.init, jax.random.key(0))
    compiler = jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()["flops"]
    assert pod.flops_by_hand(config, rows=16, model=1)[1] == pytest.approx(compiler, rel=0.05)


def one_device() -> Placement:
    return Placement(Mesh(np.array(jax.devices()[:1]).reshape(1, 1), (DATA, MODEL)))


def test_activations_are_what_grows_with_rows(pod):
    """The model is one dense QRNN layer without dropout, and a softmax much larger than that."""
    words = 64 * HIDDEN
    sizes = {"vocab_size": words, "num_layers": 1, "dropout": 0.0}
    model = dataclasses.replace(TINY.model, cell="qrnn", method="dense", **sizes)
    params = jax.eval_shape(language_model(model).init, jax.random.key(0))
    mesh = jax.make_mesh((2, 2), (DATA, MODEL), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:4])

    def activations(rows, placement):
        config = pod.with_batch(dataclasses.replace(TINY, model=model), placement, rows)
        return pod.activation_bytes(config, placement, params)

    one, token_bytes = activations(8, one_device()), 8 * TIME * 4
    # Some arrays are as wide as the softmax; the layer keeps at least its two inputs, three activations and its states.
    assert token_bytes * (words + 6 * HIDDEN) < one < token_bytes * 4 * words
    assert activations(16, one_device()) == 2 * one
    # Each of two devices keeps half of the columns of the softmax, and all of the rest.
    assert activations(8, Placement(mesh)) == pytest.approx(one - token_bytes * words / 2, rel=0.05)


# Committed ------------------------------------------------------------------------------------------------------------

LINES = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
CASES = [line for line in LINES if line["benchmark"] == "pod_compile"]


def test_committed_lines_fit_the_chips(pod):
    plain = {(line["preset"], line["topology"]) for line in CASES if line["rows"] == 8 and line["model"] == 1}
    assert plain >= {(preset, topology) for preset in pod.PRESET_NAMES for topology in pod.TOPOLOGIES}
    for line in CASES:
        assert line["memory_bytes"] < chip_of(line["topology"]).hbm
        assert line["memory_bytes"] == line["held_bytes"] + line["temporary_bytes"] + line["code_bytes"]
        assert line["held_bytes"] >= line["parameter_bytes"] + line["optimizer_bytes"]


@pytest.mark.parametrize("line", CASES, ids=lambda line: f"{line['preset']}-{line['topology']}-{line['rows']}")
def test_committed_lines_are_those_of_the_present_program(pod, line):
    """This checks what needs no compiler: operations, and the gradients that are added up."""
    config = PRESETS[line["preset"]]
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=line["vocab"]))
    assert pod.flops_by_hand(config, rows=line["rows"], model=line["model"]) == (line["kernel_flops"], line["flops"])
    size = 4 * parameters(config.model)
    if line["shard_optimizer"]:
        # All chips hold what cannot be cut evenly.
        assert size / line["chips"] <= line["parameter_bytes"] < 1.2 * size / line["chips"]
    elif line["model"] == 1:
        assert line["parameter_bytes"] == size
        assert line["collectives"]["all-reduce"]["bytes"] == size + 8


@pytest.mark.parametrize("line", CASES, ids=lambda line: f"{line['preset']}-{line['topology']}-{line['rows']}")
def test_the_limit_of_vmem_is_what_the_kernels_plan(line):
    """The largest of the plans for the products of all time steps, and of one."""
    config = PRESETS[line["preset"]].model
    h, rows = config.hidden_size, line["rows"]
    k, n = (h, 4 * h // line["model"]) if config.cell == "lstm" else (2 * h, 3 * h // line["model"])
    w, (r, c) = jax.ShapeDtypeStruct((k, n), jnp.dtype(config.dtype)), (k // 128, n // 128)
    plans = [
        plan
        for b in (rows, rows * line["sequence_length"])
        for plan in (
            plan_tiles(b, c, w, (128, 128), whole=k, outputs=128, lanes=r),
            plan_tiles(b, r, w, (128, 128), whole=n, outputs=128, inputs=128, lanes=2 * c),
        )
    ]
    assert line["kernel_vmem_limit"] == max(plan.vmem for plan in plans)


@pytest.mark.slow
@pytest.mark.usefixtures("libtpu", "all_optimizations")
@pytest.mark.parametrize("preset", ["ptb-lstm", "wikitext103-qrnn"])
def test_compiling_again_gives_the_committed_counts(pod, preset):
    line = next(line for line in CASES if line["preset"] == preset)
    environment = LINES[0]
    for package in ("jax", "libtpu"):
        if environment[package] != importlib.metadata.version(package):
            pytest.skip(f"The committed counts are those of {package} {environment[package]}.")
    got = pod.case(PRESETS[preset], line["topology"], rows=line["rows"])
    for name, value in got.items():
        expected = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
        assert line[name] == expected, name
