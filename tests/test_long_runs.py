"""Memory and compilations of a long run, and what the documentation says of them and of the killed runs."""

import json
import re
from pathlib import Path

import pytest

from tests.long_run import CHECKPOINTS, LOOKS, watch

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "results" / "reliability"
PAGE = " ".join((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split())


def growth(resident: list[float]) -> float:
    """MiB by which the memory grows after the second checkpoint; by then everything has been used once."""
    warm = resident[2 * LOOKS // CHECKPOINTS :]
    return max(warm) - warm[0]


@pytest.mark.slow
def test_memory_is_flat_and_nothing_is_compiled_again(tmp_path):
    seen = watch(tmp_path, steps=20_000, progress=False)
    # The first evaluation and checkpoint are warm-up as well; the summary comes after the last step.
    steps, every, compiled = seen["steps"], seen["checkpoint_every"], seen["compiled"]
    assert not [program for program in compiled if every < program[0] < steps]
    names = [name for step, name in compiled if step < steps]
    assert names.count("jit(train_step)") == names.count("jit(eval_step)") == 1
    assert len(seen["resident_mib"]) == LOOKS
    # Orbax keeps some hundred KiB for every checkpoint; steps keep nothing.
    assert growth(seen["resident_mib"]) < 6.0


def test_the_documentation_has_the_figures_of_the_long_run():
    seen = json.loads((FIGURES / "long_run.json").read_text())
    warm = seen["resident_mib"][2 * LOOKS // CHECKPOINTS :]
    late = [name for step, name in seen["compiled"] if seen["checkpoint_every"] < step < seen["steps"]]
    assert seen["steps"] == 20_000
    assert not late
    assert f"between {min(warm)} and {max(warm)} MiB" in PAGE
    assert f"{seen['steps']:,} steps" in PAGE
    assert seen["revision"][:8] in PAGE


def test_the_documentation_has_the_figures_of_the_killed_runs():
    seen = json.loads((FIGURES / "kills.json").read_text())
    assert seen["kills"] >= 50
    assert seen["runs_that_differ"] == 0
    moments = seen["kills_by_moment"]
    assert set(moments) == {"start", "step", "write"}
    (found,) = re.findall(r"Of (\d+) kills, (\d+) at any time, (\d+) after a step and (\d+) inside a write", PAGE)
    assert [int(n) for n in found] == [seen["kills"], moments["start"], moments["step"], moments["write"]]
    assert f"{seen['kills_that_left_an_unfinished_checkpoint']} left an unfinished checkpoint" in PAGE
    assert seen["revision"][:8] in PAGE
