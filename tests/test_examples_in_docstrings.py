"""Every public name has an example in its docstring, and all of these run as they stand."""

import inspect
import re
import shutil
import textwrap
from types import ModuleType

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import bwds
import bwds.counterfactual
import bwds.data
import bwds.export
import bwds.generate
import bwds.training.usage
import pallas_kernels
from bwds.training import train

pytestmark = pytest.mark.usefixtures("unchecked")

WORDS = ("<eos>", "<unk>", "the", "company", "said", "in", "a")
CONFIG = bwds.ModelConfig(vocab_size=len(WORDS), hidden_size=64, block_size=16, method="dense")

PUBLIC: dict[ModuleType, list[str]] = {
    bwds: [name for name in bwds.__all__ if name != "PRESETS"],  # A dict has no docstring.
    bwds.nn: bwds.nn.__all__,
    bwds.plots: bwds.plots.__all__,
    bwds.permutation: ["permute_units", "group_units"],
    bwds.pytorch: ["load_pytorch", "from_pytorch"],
    bwds.export: ["export_programs"],
    bwds.generate: ["generate", "stream"],
    bwds.counterfactual: ["apply_choosing"],
    bwds.data: ["load_corpus"],
    bwds.training: ["train"],
    bwds.training.usage: ["measure_usage"],
    pallas_kernels: pallas_kernels.__all__,
}
NAMES = {f"{module.__name__}.{name}": getattr(module, name) for module, names in PUBLIC.items() for name in names}
# What two packages offer, once.
NAMES = {path: value for path, value in NAMES.items() if value not in list(NAMES.values())[: list(NAMES).index(path)]}
METHODS = {
    f"{path}.{name}": getattr(value, name)
    for path, value in NAMES.items()
    if inspect.isclass(value)
    for name in vars(value)
    if not name.startswith("_") and callable(getattr(value, name))
}


def examples(value):
    """The code of the examples in a docstring."""
    doc = inspect.getdoc(value) or ""
    found = re.findall(r"^Example:\n    ```python\n(.*?)^    ```$", doc, flags=re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(code) for code in found]


def identifiers(code):
    return set(re.findall(r"\w+", code))


@pytest.fixture(scope="module")
def params():
    return bwds.language_model(CONFIG).init(jax.random.key(0))


@pytest.fixture(scope="module")
def folder(params, tmp_path_factory):
    """What examples find where they run: the folder of a run, and models in files."""
    folder = tmp_path_factory.mktemp("examples")
    lines = "the company said in a\nsaid the company in the company\n" * 8
    for split in ("train", "valid", "test"):
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / f"{split}.txt").write_text(lines)
    config = bwds.Config(
        model=bwds.ModelConfig(hidden_size=16, block_size=8, num_layers=1, method="dense"),
        data=bwds.DataConfig(dataset="text", directory=str(folder / "texts"), batch_size=2, sequence_length=4),
        train=bwds.TrainConfig(steps=1, eval_every=1, checkpoint_every=1),
    )
    train(config, folder / "runs" / "quick", progress=False)
    bwds.save_model(folder / "model.safetensors", params, CONFIG, vocabulary=WORDS)
    v, h, rng = len(WORDS), 64, np.random.default_rng(0)
    shapes = {"encoder.weight": (v, h), "decoder.weight": (v, h), "decoder.bias": (v,)}
    for layer in range(2):
        parts = {"weight_ih": (4 * h, h), "weight_hh": (4 * h, h), "bias_ih": (4 * h,), "bias_hh": (4 * h,)}
        shapes |= {f"rnn.{name}_l{layer}": shape for name, shape in parts.items()}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "lstm.safetensors")
    return folder


@pytest.fixture
def namespace(params, folder, tmp_path, monkeypatch):
    """The names that examples take as given: modules, the functions on blocks, and a dense model of 2 x 64."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return {
        **{"jax": jax, "jnp": jnp, "np": np, "nnx": nnx, "bwds": bwds},
        **{name: getattr(pallas_kernels, name) for name in pallas_kernels.__all__},
        "config": CONFIG,
        "params": params,
        "tokens": jax.random.randint(jax.random.key(1), (4, 16), 0, len(WORDS)),
        "vocabulary": bwds.Vocabulary(WORDS),
        "loaded": bwds.load_model("model.safetensors"),
    }


@pytest.mark.parametrize("path", NAMES)
def test_a_public_name_has_an_example_that_runs(path, namespace):
    value, given = NAMES[path], dict(namespace)
    found = examples(value)
    assert found, f"The docstring of {path} has no Example: with a python block."
    for code in found:
        exec(compile(code, path, "exec"), namespace)
    made = [thing for name, thing in namespace.items() if thing is not given.get(name)]
    assert path.rpartition(".")[2] in identifiers("".join(found)) or (
        inspect.isclass(value) and any(isinstance(thing, value) for thing in made)
    ), f"The example of {path} is of something else."


@pytest.mark.parametrize("path", [path for path, method in METHODS.items() if examples(method)])
def test_an_example_of_a_method_runs(path, namespace):
    for code in examples(METHODS[path]):
        exec(compile(code, path, "exec"), namespace)
        assert path.rpartition(".")[2] in identifiers(code)
