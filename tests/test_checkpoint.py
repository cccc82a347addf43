"""Checkpoints come back whole or not at all, and a folder belongs to one run."""

import dataclasses
import errno
import hashlib
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from bwds.data import Vocabulary
from bwds.digest import digest
from bwds.training import checkpoint
from bwds.training.checkpoint import Checkpoints
from bwds.training.summary import read_summary
from bwds.training.workdir import claim_workdir, config_differences, keep_config, read_config

VOCABULARY = Vocabulary(("<eos>", "a", "b"))


class Pair(NamedTuple):
    left: jax.Array
    right: tuple[jax.Array, ...]


def state(seed: int) -> dict:
    """A tree of all the kinds of leaves that a training state has."""
    key = jax.random.key(seed)
    return {
        "w": jax.random.normal(key, (30, 40)),
        "pair": Pair(jnp.int32(seed), (jnp.float32(jnp.inf), jnp.arange(3))),
        "key": key,
        "empty": {},
    }


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert digest(left) == digest(right)


def digest_of_all(directory):
    """What versions before the manifest kept."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p.name != "sha256.txt")
    digests = {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    return hashlib.sha256("".join(f"{name} {value}\n" for name, value in digests.items()).encode()).hexdigest()


def damage(directory):
    """Flips bits in the middle of every file."""
    for path in directory.rglob("*"):
        if path.is_file() and (content := bytearray(path.read_bytes())):
            content[len(content) // 2] ^= 0xFF
            path.write_bytes(content)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    Checkpoints(tmp_path, keep=2).save(3, state(1), loss=0.5)
    restored, info = Checkpoints(tmp_path, keep=2).restore(jax.eval_shape(lambda: state(0)))
    assert_same(restored, state(1))
    assert (info["step"], info["loss"]) == (3, 0.5)
    np.testing.assert_array_equal(jax.random.uniform(restored["key"]), jax.random.uniform(state(1)["key"]))


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):
        checkpoints.save(step, state(step))
    assert checkpoints.steps == [10, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "2"]
    assert_same(checkpoints.restore(state(0))[0], state(10))


def test_later_checkpoints_are_forgotten(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (3, 7):
        checkpoints.save(step, state(step))
    checkpoints.forget_after(3)
    assert Checkpoints(tmp_path, keep=2).steps == checkpoints.steps == [3]


def test_what_a_killed_write_leaves_is_not_a_checkpoint(tmp_path):
    Checkpoints(tmp_path, keep=2).save(1, state(1))
    shutil.copytree(tmp_path / "1", tmp_path / "2.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.steps == [1]
    checkpoints.save(3, state(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("killed", [True, False])
def test_a_checkpoint_without_its_digests_counts_for_nothing(tmp_path, monkeypatch, capsys, read_only, killed):
    """What a killed process left unfinished is removed; what may be a copy that lost its digests is set aside."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state(1))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "manifest", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(2, state(2))
    if not killed:
        (tmp_path / "2.writing").unlink()
    before = sorted(path.name for path in tmp_path.iterdir())
    checkpoints = Checkpoints(tmp_path, keep=2, read_only=read_only)
    assert checkpoints.steps == [1]
    assert_same(checkpoints.restore(state(0))[0], state(1))
    aside = [] if killed else ["2.incomplete"]
    assert sorted(path.name for path in tmp_path.iterdir()) == (before if read_only else ["1", *aside])
    assert ("it is 2.incomplete now" in capsys.readouterr().err) == bool(aside and not read_only)
    if aside and not read_only:
        (tmp_path / "2.incomplete" / "sha256.txt").write_text(checkpoint.manifest(tmp_path / "2.incomplete"))
        (tmp_path / "2.incomplete").rename(tmp_path / "2")
        assert_same(Checkpoints(tmp_path, keep=2).restore(state(0))[0], state(2))


@pytest.mark.parametrize("read_only", [False, True])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys, read_only):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    damage(tmp_path / "2")
    checkpoints = Checkpoints(tmp_path, keep=2, read_only=read_only)
    restored, info = checkpoints.restore(state(0))
    assert_same(restored, state(1))
    assert info["step"] == 1
    assert "warning: the checkpoint of step 2" in capsys.readouterr().err
    assert (tmp_path / "2").exists() == read_only
    assert (tmp_path / "2.damaged").exists() != read_only
    if not read_only:
        checkpoints.save(2, state(2))
        assert_same(checkpoints.restore(state(0))[0], state(2))
        damage(tmp_path / "2")
        Checkpoints(tmp_path, keep=2).restore(state(0))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2.damaged", "2.damaged2"]


def test_what_others_put_into_a_checkpoint_is_no_damage(tmp_path, monkeypatch, capsys):
    """At any time, also if it comes and goes during a save. Checkpoints of an earlier version still count as whole."""
    write = checkpoint.write_text

    def drop_first(path, text):
        for name in (".nfs0001", "state/._d", ".DS_Store"):
            (path.parent / name).write_bytes(b"before")
        write(path, checkpoint.manifest(path.parent))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_text", drop_first)
        Checkpoints(tmp_path, keep=2).save(1, state(1))
    (tmp_path / "1" / ".nfs0001").unlink()

    def read():
        for read_only in (True, False):
            assert_same(Checkpoints(tmp_path, keep=2, read_only=read_only).restore(state(0))[0], state(1))
        assert capsys.readouterr().err == ""
        assert (tmp_path / "1").is_dir()

    # Versions before the manifest wrote one digest of all files.
    (tmp_path / "1" / "sha256.txt").write_text(digest_of_all(tmp_path / "1"))
    read()
    write(tmp_path / "1" / "sha256.txt", checkpoint.manifest(tmp_path / "1"))
    for folder in (tmp_path, *[path for path in tmp_path.rglob("*") if path.is_dir()]):
        for name in ("desktop.ini", "._x", ".sha256.txt.swp", "notes.txt~", "12"):
            (folder / name).write_bytes(b"")
        (folder / "@eaDir").mkdir()
    (tmp_path / "12").unlink()
    read()


def test_later_checkpoints_are_set_aside_whole(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (3, 7):
        checkpoints.save(step, state(step))
    checkpoints.forget_after(3)
    (tmp_path / "7.later").rename(tmp_path / "7")
    assert_same(Checkpoints(tmp_path, keep=2).restore(state(0))[0], state(7))


@pytest.mark.parametrize("change", [lambda old: old[:-1], lambda old: bytes([old[0] ^ 1]) + old[1:], None])
def test_no_change_to_any_file_goes_unseen(tmp_path, change):
    Checkpoints(tmp_path / "good", keep=2).save(1, state(1))
    files = [path.relative_to(tmp_path) for path in (tmp_path / "good" / "1").rglob("*") if path.is_file()]
    changed = 0
    for file in files:
        content = (tmp_path / file).read_bytes()
        if change is None:
            (tmp_path / file).unlink()
        elif content:
            (tmp_path / file).write_bytes(change(content))
        else:
            continue
        changed += 1
        with pytest.raises(ValueError, match=r"that of step 1 is damaged|There is no checkpoint"):
            Checkpoints(tmp_path / "good", keep=2, read_only=True).restore(state(0))
        (tmp_path / file).write_bytes(content)
    assert changed >= 5
    assert_same(Checkpoints(tmp_path / "good", keep=2).restore(state(0))[0], state(1))


def test_no_checkpoint_at_all_is_said(tmp_path):
    with pytest.raises(ValueError, match="There is no checkpoint in"):
        Checkpoints(tmp_path, keep=1).restore(state(0))
    with pytest.raises(ValueError, match="There is no checkpoint in"):
        Checkpoints(tmp_path / "nowhere", keep=1, read_only=True)
    assert not (tmp_path / "nowhere").exists()


def test_a_state_of_another_shape_is_refused(tmp_path):
    Checkpoints(tmp_path, keep=2).save(1, state(1))
    with pytest.raises(ValueError, match=r"step 1 in .* cannot be read .* it is of another version"):
        Checkpoints(tmp_path, keep=2).restore(state(0) | {"more": jnp.zeros(3)})


@pytest.mark.parametrize("moment", ["digest", "arrays"])
@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.EIO, "Input/output error"), OSError, r"step 2 in .* cannot be read .*Input/output error"),
        (MemoryError("no room"), MemoryError, "no room"),
    ],
)
def test_an_error_in_reading_is_no_damage(tmp_path, monkeypatch, moment, error, raised, message):
    """There is an older checkpoint that can be read, and the newest stays."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, state(step))

    def fail(*arguments):
        # Checkpoint 1 is not tried, because this is not damage.
        assert arguments[0] in (2, tmp_path / "2")
        raise error

    place = {"digest": (checkpoint, "unchanged"), "arrays": (checkpoints, "_read")}[moment]
    with monkeypatch.context() as patch:
        patch.setattr(*place, fail)
        with pytest.raises(raised, match=message):
            checkpoints.restore(state(0))
    assert_same(checkpoints.restore(state(0))[0], state(2))


def test_another_process_that_ends_is_no_fault_of_the_folder(tmp_path, monkeypatch):
    """Its error is not reported as one of the disk; the process says what has most likely happened."""
    checkpoints = Checkpoints(tmp_path, keep=2)

    def fail(*_):
        raise jax.errors.JaxRuntimeError("UNKNOWN: Connection closed by peer")

    monkeypatch.setattr(checkpoints, "_write", fail)
    with pytest.raises(OSError, match="The checkpoint of step 1 cannot be written"):
        checkpoints.save(1, {"w": jnp.zeros(3)})
    monkeypatch.setattr("bwds.training.checkpoint.first_alone", lambda function: function())
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNKNOWN: Connection closed"):
        checkpoints.save(1, {"w": jnp.zeros(3)})


def test_digest_sees_values_types_shapes_and_names_but_not_the_order_of_insertion():
    base = {"a": jnp.arange(6.0), "b": jnp.zeros(2)}
    others = [
        {"a": jnp.arange(6.0).at[5].add(1e-6), "b": jnp.zeros(2)},
        {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(2)},
        {"a": jnp.arange(6.0), "b": jnp.zeros(2, jnp.int32)},
        {"a": jnp.arange(6.0), "c": jnp.zeros(2)},
    ]
    assert digest(base) == digest({"b": jnp.zeros(2), "a": jnp.arange(6.0)})
    assert len({digest(tree) for tree in [base, *others]}) == 5


def test_a_folder_belongs_to_one_run(tmp_path):
    config = tiny_run.config(tmp_path)
    folder = tmp_path / "run"
    claim_workdir(folder, config, VOCABULARY)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    claim_workdir(folder, config, VOCABULARY)
    other = tiny_run.config(tmp_path, sparsity=0.75, steps=99)
    with pytest.raises(ValueError, match=r"model\.sparsity: 0\.5 there, 0\.75 now; train\.steps: 16 there, 99 now"):
        claim_workdir(folder, other, VOCABULARY)
    with pytest.raises(ValueError, match="text has changed"):
        claim_workdir(folder, config, Vocabulary(("<eos>", "a", "c")))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert read_config(folder) == config
    assert read_summary(folder) is None


def test_every_option_is_compared(tmp_path):
    config = tiny_run.config(tmp_path)
    assert config_differences(config, config) == []
    changed = {"model": {"cell": "qrnn"}, "data": {"batch_size": 9}, "optim": {"clip_norm": 0.5}, "train": {"seed": 1}}
    for section, change in changed.items():
        other = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **change)})
        (difference,) = config_differences(config, other)
        assert difference.startswith(f"{section}.{next(iter(change))}: ")


def test_what_depends_on_the_machine_is_no_part_of_what_a_run_is(tmp_path, capsys):
    """When the run goes on, its new value is kept; when the run is finished, it is not."""
    config, folder = tiny_run.config(tmp_path), tmp_path / "run"
    claim_workdir(folder, config, VOCABULARY)
    free = {"directory": "elsewhere", "eval_batch_size": 9, "implementation": "xla", "log_every": 7}
    other = tiny_run.config(tmp_path, **free, checkpoint_every=5)
    claim_workdir(folder, other, VOCABULARY)
    keep_config(folder, other, finished=True)
    assert read_config(folder) == config
    assert capsys.readouterr().err.count("The run was made with another ") == 5
    keep_config(folder, other)
    assert read_config(folder) == other
    assert "The run goes on with another train.log_every: 1 there, 7 now." in capsys.readouterr().err
    for change in ({"eval_every": 4}, {"vocab_limit": 9}, {"dataset": "ptb"}):
        with pytest.raises(ValueError, match="another configuration"):
            claim_workdir(folder, tiny_run.config(tmp_path, **change), VOCABULARY)


@pytest.mark.parametrize("name", ["metrics.jsonl", "vocabulary.txt", "summary.json"])
def test_a_folder_with_something_else_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"has {name} but no config.json"):
        claim_workdir(tmp_path, tiny_run.config(tmp_path), VOCABULARY)
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_without_a_readable_configuration_is_named(tmp_path):
    with pytest.raises(ValueError, match="There is no run in"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: The configuration is not valid JSON"):
        read_config(tmp_path)
