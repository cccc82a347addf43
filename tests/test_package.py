"""The public names, which module knows which, and what an import costs."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from flax import nnx

import bwds

ROOT = Path(__file__).parents[1]
SOURCES = [*ROOT.glob("bwds/**/*.py"), *ROOT.glob("pallas_kernels/**/*.py"), ROOT / "train.py", ROOT / "eval.py"]
LONGEST = 300

TRAINING_PACKAGES = {"optax", "orbax", "tensorflow_datasets", "array_record", "tyro", "tqdm", "tensorboardX"}
"""What the extra ``train`` adds, by import name."""

MAY_IMPORT_THEM = ("bwds/data/", "bwds/training/", "bwds/cli/", "train.py", "eval.py")
"""What lies here may import them; nothing else, even inside a function."""

LAYERS = {
    "bwds/data/": {"data"},
    "bwds/training/": {"data", "training"},
    "bwds/cli/": {"data", "training", "cli"},
    "bwds/__main__.py": {"cli"},
}
"""Which packages of bwds the files of a place may import; any other file of bwds may import none of them."""

READS_A_RUN = "bwds/files.py"
"""May also import ``bwds.training``, inside a function: it reads the folder of a run, which training wrote."""


def imported(path: Path) -> Iterator[str]:
    """Full names of all modules that the file imports, at its top or inside its functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import; the rules here read absolute ones."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_after(*statements: str) -> set[str]:
    """Names of the top-level packages in memory after the statements, in a new interpreter."""
    code = "; ".join(["import sys", *statements, "print(*{m.partition('.')[0] for m in sys.modules})"])
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "name",
    [
        "gate_scores",
        "init_gate",
        "num_kept_blocks",
        "topk_gates",
        "block_sparse_matmul",
        "to_block_major",
        "language_model",
        "decode_params",
        "save_model",
        "load_model",
        "load",
        "cost",
        "ModelConfig",
        "LanguageModel",
    ],
)
def test_public_name(name):
    assert callable(getattr(bwds, name))
    assert name in bwds.__all__


@pytest.mark.parametrize("name", ["BlockSparseLinear", "LSTM", "QRNN"])
def test_public_module(name):
    assert issubclass(getattr(bwds.nn, name), nnx.Module)


def test_presets():
    assert {
        "quick",
        "ptb-lstm",
        "ptb-qrnn",
        "ptb-lstm-small",
        "ptb-qrnn-small",
        "ptb-lstm-zaremba",
        "ptb-awd-lstm",
        "wikitext2-lstm",
        "wikitext103-qrnn",
    } <= bwds.PRESETS.keys()


def test_all_names_exist():
    assert [name for name in bwds.__all__ if not hasattr(bwds, name)] == []


def test_what_cites_bwds_cites_this_version():
    assert f"\nversion: {bwds.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_what_a_text_says_to_install_is_there():
    """bwds is on no package index: extras are those of a clone."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob(".ci/*")]
    for path in [*pages, *SOURCES, *ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("examples/*.py")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"bwds\[|pip install bwds|URL_OF", text), path
        named = re.findall(r"pip install [^\n]*\.\[([\w,]+)\]", text)
        assert {extra for group in named for extra in group.split(",")} <= extras.keys(), path


@pytest.mark.parametrize("package", ["bwds", "pallas_kernels"])
def test_a_package_says_that_it_has_types(package):
    assert (ROOT / package / "py.typed").is_file()


def test_import_bwds_is_light():
    # flax itself imports optax: what counts is what bwds adds to its own dependencies.
    extra = modules_after("import bwds") - modules_after("import jax, flax.nnx, numpy, jaxtyping")
    assert "bwds" in extra
    assert not extra & TRAINING_PACKAGES


def test_options_are_read_without_what_training_needs():
    extra = modules_after("import bwds.cli, bwds.data, bwds.training.devices") - modules_after(
        "import jax, flax.nnx, numpy, jaxtyping"
    )
    assert not extra & TRAINING_PACKAGES


def test_pallas_kernels_stands_alone():
    found = modules_after("import pallas_kernels")
    assert "pallas_kernels" in found
    assert not found & {"bwds", "flax", *TRAINING_PACKAGES}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_follow_the_layers(path):
    names, place = set(imported(path)), relative(path)
    packages = {name.partition(".")[0] for name in names}
    if not place.startswith(MAY_IMPORT_THEM):
        assert not packages & TRAINING_PACKAGES
    assert "benchmarks" not in packages
    if place.startswith("pallas_kernels/"):
        assert "bwds" not in packages
    if place.startswith("bwds/"):
        known = {name.split(".")[1] for name in names if name.startswith("bwds.")} & {"data", "training", "cli"}
        allowed = next((layers for folder, layers in LAYERS.items() if place.startswith(folder)), set())
        assert known <= allowed | ({"training"} if place == READS_A_RUN else set())


@pytest.mark.parametrize("path", [*SOURCES, *ROOT.glob("benchmarks/**/*.py")], ids=relative)
def test_file_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST
