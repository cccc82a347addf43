"""Whatever happens to the files of a run: what is read is what was saved, or the folder is named in a sentence."""

import contextlib
import functools
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from hypothesis import example, given
from hypothesis import strategies as st

from bwds.config import Config, ModelConfig
from bwds.data import Vocabulary
from bwds.digest import digest
from bwds.model import language_model
from bwds.training.checkpoint import Checkpoints, best_checkpoints
from bwds.training.identity import identity
from bwds.training.manifest import MANIFEST_FILE
from bwds.training.trained import load_params
from bwds.training.workdir import claim_workdir, read_config
from tests.strategies import apply, attempt, folder_changes

STEPS = (1, 2)
VOCABULARY = Vocabulary(("<eos>", "a", "b", "<unk>"))
CONFIG = Config(model=ModelConfig(vocab_size=4, hidden_size=4, block_size=2, num_layers=1))


def state(step: int) -> dict[str, Any]:
    return {"w": jnp.arange(12.0).reshape(3, 4) + step, "step": jnp.int32(step), "key": jax.random.key(step)}


@functools.cache
def parameters(step: int) -> Any:
    return jax.jit(language_model(CONFIG.model).init)(jax.random.key(step))


@functools.cache
def saved() -> Path:
    """A folder with two checkpoints of a state, and the folder of a run with two of its parameters."""
    root = Path(_scratch.name)
    checkpoints = Checkpoints(root / "states", keep=2)
    claim_workdir(root / "run", CONFIG, VOCABULARY)
    best = best_checkpoints(root / "run")
    for step in STEPS:
        checkpoints.save(step, state(step))
        best.save(step, parameters(step), loss=1.0, **identity(CONFIG.model, VOCABULARY))
    return root


_scratch = tempfile.TemporaryDirectory(prefix="bwds-")


@contextlib.contextmanager
def damaged_copy(name: str, changes: list[tuple[Any, ...]]) -> Any:
    with tempfile.TemporaryDirectory(prefix="bwds-") as folder:
        copy = Path(folder) / name
        shutil.copytree(saved() / name, copy)
        apply(copy, changes)
        yield copy


def swapped(step: Path, other: Path) -> list[tuple[Any, ...]]:
    return [("swap", step, other)]


@given(changes=st.deferred(lambda: folder_changes(saved() / "states")))
@example(changes=swapped(Path("1"), Path("2")))
@example(changes=[("rename", Path("2"), Path("3"))])
@example(changes=[("copy", Path("1"), Path("3"))])
@example(changes=[("add", Path("3"), b"a file")])
@example(changes=[("add", Path("1\u00b2"), "folder")])
@example(changes=[("add", Path("9" * 30), "folder")])
def test_a_damaged_checkpoint_gives_what_was_saved_or_is_refused(changes):
    for read_only in (True, False):
        with damaged_copy("states", changes) as folder, contextlib.redirect_stderr(io.StringIO()) as told:
            read = functools.partial(read_state, folder, read_only=read_only)
            restored, _ = attempt(read, str(folder))
            if restored is None:
                continue
            tree, info = restored
            assert info["step"] in STEPS
            assert digest(tree) == digest(state(info["step"]))
            # An older one only with a warning, or where the newer one is gone.
            for step in STEPS[info["step"] :]:
                assert not (folder / str(step) / MANIFEST_FILE).is_file() or "warning: " in told.getvalue()


def read_state(folder: Path, *, read_only: bool) -> tuple[Any, dict[str, Any]]:
    return Checkpoints(folder, keep=2, read_only=read_only).restore(state(0))


def opened(workdir: Path) -> tuple[Any, ...]:
    """What an evaluation begins with."""
    config = read_config(workdir)
    vocabulary = Vocabulary.load(workdir / "vocabulary.txt")
    return config, vocabulary, *load_params(config, workdir, "best")


def in_config(old: str, new: str) -> list[tuple[Any, ...]]:
    text = CONFIG.to_json()
    assert old in text
    return [("write", Path("config.json"), text.replace(old, new).encode())]


@given(changes=st.deferred(lambda: folder_changes(saved() / "run")))
@example(changes=in_config('"gate_activation": "linear"', '"gate_activation": "softplus"'))
@example(changes=in_config('"sparsity": 0.5,', ""))
@example(changes=[("write", Path("vocabulary.txt"), b"<eos>\nb\na\n<unk>\n")])
@example(changes=[("write", Path("vocabulary.txt"), b"<eos>\na\n<unk>\n")])
def test_a_damaged_run_gives_what_was_saved_or_is_refused(changes):
    with damaged_copy("run", changes) as workdir, contextlib.redirect_stderr(io.StringIO()):
        found, _ = attempt(lambda: opened(workdir), str(workdir))
        if found is not None:
            config, vocabulary, params, step = found
            assert config.model == CONFIG.model
            assert vocabulary == VOCABULARY
            assert step in STEPS
            assert digest(params) == digest(parameters(step))
