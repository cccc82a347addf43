"""The grid of the comparison: which cells there are, what sets each apart, and what the sweep chose for its method."""

import dataclasses
import shlex
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.quality import grid
from benchmarks.quality.cell_lines import read_line
from benchmarks.quality.grid import (
    GATES,
    HEADLINE,
    MORE_GATES,
    PAPER,
    PUBLISHED,
    RUNNERS_UP,
    SIZES,
    SMALL,
    SPARSITIES,
    SWEEP,
    SWEPT,
    TUNED,
    TWO_DEVICES,
    cells,
    matching,
    shortened,
    sweep,
    swept_as,
    to_the_end,
    variants,
    with_dropout,
)
from bwds import PRESETS, cost
from bwds.cli import train as train_script
from bwds.training.devices import MeshConfig
from bwds.training.optim import learning_rate_schedule

ROOT = Path(__file__).parents[1]


def test_names_are_unique_and_every_variant_has_its_seeds():
    made = cells()
    assert max(Counter(cell.name for cell in made).values()) == 1
    for preset in SIZES:
        for variant in (*variants(preset), *sweep(preset), *to_the_end(preset), *with_dropout(preset)):
            seeds = [cell.seed for cell in made if (cell.preset, cell.variant) == (preset, variant)]
            wanted = [0, 1, 2] if variant in HEADLINE or preset == PUBLISHED else [0]
            assert seeds == [*wanted, *([3, 4] if preset in SMALL and variant == "dynamic-softplus-0.5" else [])]
    assert made[0].name == f"{PUBLISHED}/dense/seed0"


def test_the_command_of_a_cell_is_its_configuration():
    # One cell of each set of options.
    for cell in {(cell.preset, cell.devices, *cell.options): cell for cell in cells()}.values():
        python, script, *arguments = shlex.split(cell.command(f"runs/{cell.name}"))
        assert (python, script) == ("python", "train.py")
        config, workdir, mesh, *_ = train_script.parse(arguments)
        assert (config, workdir) == (cell.config(), Path(f"runs/{cell.name}"))
        assert mesh == MeshConfig(data=2 if cell.variant == TWO_DEVICES else 1)


def test_no_two_cells_are_the_same_run():
    assert max(Counter((cell.config(), cell.devices) for cell in cells()).values()) == 1
    for preset in SMALL:
        one, two = matching([f"{preset}/dynamic-softplus-0.5/seed0", f"{preset}/{TWO_DEVICES}/*"])
        assert (one.options, one.devices, two.devices) == (two.options, 1, 2)


def test_dense_of_equal_cost_costs_what_dynamic_does():
    costs = {cell.name: cost(cell.config()).total for cell in cells()}
    for preset in (*SMALL, *PAPER):
        for s in SPARSITIES:
            for gate in GATES:
                ratio = costs[f"{preset}/dense-equal-{s}/seed0"] / costs[f"{preset}/dynamic-{gate}-{s}/seed0"]
                assert abs(ratio - 1) < 0.01


def test_without_a_gate_blocks_are_all_that_it_costs():
    for preset in (*SMALL, *PAPER):
        made = variants(preset)
        for s in SPARSITIES:
            model = dataclasses.replace(
                PRESETS[preset].model,
                **{name.removeprefix("model."): value for name, value in made[f"dynamic-norm-{s}"].items()},
            )
            assert (model.gate_source, model.gate_rank) == ("norm", None)
            found = cost(model)
            assert found.gates < 0.005 * (found.dense - found.softmax)


def test_other_gates_come_last():
    names = [cell.name for cell in cells()]
    wanted = [f"{preset}/{variant}/seed0" for preset in (*SMALL, *PAPER) for variant in MORE_GATES]
    assert names[-len(wanted) :] == wanted
    (cell,) = [cell for cell in cells() if cell.name == "ptb-lstm-small/dynamic-relu-0.5/seed0"]
    assert (cell.config().model.gate_activation, cell.config().model.sparsity) == ("relu", 0.5)


def test_patterns_choose_cells():
    assert [cell.name for cell in matching(["ptb-lstm/dense/*"])] == [f"ptb-lstm/dense/seed{i}" for i in range(3)]
    assert len(matching(["*", "ptb-lstm/*"])) == len(matching(["*"]))
    with pytest.raises(ValueError, match="No cell is called 'ptb-gru/"):
        matching(["*", "ptb-gru/*"])


def test_cells_differ_from_their_preset_only_in_what_is_compared():
    compared = {"model.method", "model.sparsity", "model.hidden_size", "model.magnitude_unit", "model.gate_source"}
    compared |= {
        "model.gate_activation",
        "model.gate_rank",
        "train.seed",
        *(option for options in SWEEP.values() for option in options),
    }
    swept, dropped = ({(preset, name) for preset in SIZES for name in made(preset)} for made in (sweep, with_dropout))
    for cell in cells():
        more = {"train.steps"} if (cell.preset, cell.variant) in swept else set()
        more |= {"model.dropout"} if (cell.preset, cell.variant) in dropped else set()
        assert more <= set(cell.options) <= compared | more


def test_every_variant_takes_what_the_sweep_chose_for_its_method():
    for preset in (*SMALL, *PAPER):
        made = variants(preset)
        for name, options in made.items():
            swept = swept_as(name)
            assert swept in SWEPT
            # Further gates take what suits softplus.
            for option in ("model.method", *(["model.gate_activation"] if name not in MORE_GATES else [])):
                assert made[swept].get(option) == options.get(option), name
        assert {swept_as(name) for name in SWEPT} == set(SWEPT)


def test_what_is_chosen_for_a_method_reaches_its_cells_and_no_other(monkeypatch):
    monkeypatch.setattr(grid, "TUNED", {})
    plain = {cell.name: cell.options for cell in grid.cells()}
    monkeypatch.setattr(grid, "TUNED", {("ptb-lstm-small", "dynamic-softplus-0.5"): "adamw-0.002"})
    changed = {cell.name: cell for cell in grid.cells() if cell.options != plain[cell.name]}
    kinds = {
        "dynamic-softplus",
        "dynamic-bias",
        "dynamic-random",
        *(f"dynamic-{name}-0.5-dropout" for name in ("softplus", "bias", "low-rank")),
    }
    kinds |= {name.rpartition("-")[0] for name in (*grid.MORE_GATES, grid.LOW_RANK, TWO_DEVICES)}
    assert {cell.variant.rpartition("-")[0] for cell in changed.values()} == kinds
    for name, cell in changed.items():
        assert cell.preset == "ptb-lstm-small"
        assert cell.options == plain[name] | grid.SWEEP["adamw-0.002"]


def test_the_sweep_tries_the_preset_and_the_same_for_every_method():
    for preset in SMALL:
        chosen = PRESETS[preset].optim
        assert (chosen.name, SWEEP["sgd-20"]) == ("sgd", {"optim.learning_rate": chosen.learning_rate})
        runs, made = sweep(preset), variants(preset)
        assert len(runs) == len(SWEEP) * len(SWEPT)
        for variant in SWEPT:
            for name, options in SWEEP.items():
                steps = {"train.steps": 2 * PRESETS[preset].train.eval_every}
                assert runs[f"{variant}-two-epochs-{name}"] == made[variant] | options | steps


def test_what_is_tuned_is_what_the_sweep_says():
    """The lowest validation perplexity after two epochs, once every run of a method is there; or the lower at the end.

    Where the best by the other optimiser has been trained to the end too, the two ends decide.
    """
    lines = {cell.name: read_line(cell, ROOT / "benchmarks/results/quality") for cell in cells()}
    assert TUNED.keys() | RUNNERS_UP.keys() <= {(preset, variant) for preset in SMALL for variant in SWEPT}
    for preset in SMALL:
        for variant in SWEPT:
            runs = {name: lines[f"{preset}/{variant}-two-epochs-{name}/seed0"] for name in SWEEP}
            chosen, second = TUNED.get((preset, variant), "sgd-20"), RUNNERS_UP.get((preset, variant))
            if not all(runs.values()):
                assert (preset, variant) not in TUNED
                assert second is None
                continue
            told = {name: line.get("validation_perplexity", float("inf")) for name, line in runs.items()}
            best = min(told, key=told.__getitem__)
            others = [name for name in SWEEP if SWEEP[name].get("optim.name") != SWEEP[best].get("optim.name")]
            assert second is None or {chosen, second} == {best, min(others, key=told.__getitem__)}
            ends = [lines[f"{preset}/{name}/seed0"] for name in (variant, f"{variant}-to-the-end-{second}") if second]
            if second is None or not all(ends):
                assert chosen == best
            else:
                assert ends[0]["validation_perplexity"] <= ends[1].get("validation_perplexity", float("inf"))


def test_shorter_runs_halve_the_rate_at_their_end():
    (cell,) = matching(["ptb-lstm/magnitude-0.5/seed1"])
    short = shortened(cell, 10)
    config = short.config()
    assert short.name == "ptb-lstm/magnitude-0.5-10-epochs/seed1"
    assert (config.train.steps, config.train.seed, config.optim.plateau_factor) == (10 * 207, 1, 1.0)
    rate = learning_rate_schedule(config.optim, config.train.steps)
    assert [float(rate(epoch * 207)) for epoch in range(10)] == [20.0] * 6 + [10.0, 5.0, 2.5, 1.25]
    rehearsed = shortened(cell, 3, 20)
    assert rehearsed.name == "ptb-lstm/magnitude-0.5-3-epochs-of-20-steps/seed1"
    assert (rehearsed.config().train.steps, rehearsed.config().train.eval_every) == (60, 20)
    # A cell of the sweep has a schedule of its own.
    (adamw,) = matching(["ptb-lstm-small/dense-two-epochs-adamw-0.002/seed0"])
    assert shortened(adamw, 2).config().optim.transition_steps is None
