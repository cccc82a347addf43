"""The grid of the comparison, and how one of its cells is run: to the end, once, and on from where it was stopped."""

import dataclasses
import functools
import json
import math
import os
import shlex
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import tiny_run

import train as train_script
from bwds import PRESETS, cost, training
from bwds.devices import MeshConfig
from bwds.interrupt import InterruptedRunError
from bwds.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture(scope="module", autouse=True)
def compile_once():
    """The same functions for the same configuration: what jit has compiled for one run serves the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "language_model", functools.cache(training.language_model))
        patch.setattr(training, "make_optimizer", functools.cache(training.make_optimizer))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.write_corpus(tmp_path_factory.mktemp("text"))


def tiny(**options):
    """A cell of 6 steps with a checkpoint every second."""
    from grid import Cell

    sizes = {"model.hidden_size": 32, "model.block_size": 16, "model.num_layers": 1, "model.sparsity": 0.5}
    data = {"data.dataset": "text", "data.batch_size": 4, "data.sequence_length": 8, "data.eval_batch_size": 2}
    steps = {"train.steps": 6, "train.eval_every": 3, "train.checkpoint_every": 2, "train.log_every": 1}
    return Cell("ptb-lstm-small", "tiny", 0, sizes | data | steps | options)


def test_names_are_unique_and_every_variant_has_its_seeds():
    from grid import CONTROLS, HEADLINE, SIZES, SMALL, ablations, cells, longer, sweep, variants

    made = cells()
    assert max(Counter(cell.name for cell in made).values()) == 1
    for preset, size in SIZES.items():
        for variant in (*variants(preset), *sweep(preset), *ablations(preset), *longer(preset)):
            seeds = [cell.seed for cell in made if (cell.preset, cell.variant) == (preset, variant)]
            several = variant in HEADLINE or (variant in (*CONTROLS, *ablations(preset)) and size is SMALL)
            assert seeds == ([0, 1, 2] if several else [0])


def test_the_command_of_a_cell_is_its_configuration():
    from grid import cells

    for cell in cells():
        python, script, *arguments = shlex.split(cell.command(f"runs/{cell.name}"))
        assert (python, script) == ("python", "train.py")
        config, workdir, mesh, *_ = train_script.parse(arguments)
        assert (config, workdir) == (cell.config(), Path(f"runs/{cell.name}"))
        assert mesh == MeshConfig(data=1)


def test_no_two_cells_are_the_same_run():
    """Except where the sweep has chosen: that run is the first seed of its variant too."""
    from grid import SIZES, cells, sweep

    tried = {(preset, name) for preset in SIZES for name in sweep(preset)}
    swept = [cell.config() for cell in cells() if (cell.preset, cell.variant) in tried]
    others = [cell.config() for cell in cells() if (cell.preset, cell.variant) not in tried]
    assert max(Counter(swept).values()) == max(Counter(others).values()) == 1


def test_dense_of_equal_cost_costs_what_dynamic_does():
    from grid import SIZES, cells

    costs = {cell.name: cost(cell.config()).total for cell in cells()}
    for preset in SIZES:
        for s in (0.5, 0.75, 0.9):
            ratio = costs[f"{preset}/dense-equal-{s}/seed0"] / costs[f"{preset}/dynamic-{s}/seed0"]
            assert abs(ratio - 1) < 0.01


def test_patterns_choose_cells():
    from grid import matching

    assert [cell.name for cell in matching(["ptb-lstm/dense/*"])] == [f"ptb-lstm/dense/seed{i}" for i in range(3)]
    assert len(matching(["*", "ptb-lstm/*"])) == len(matching(["*"]))
    with pytest.raises(ValueError, match="No cell is called 'ptb-gru/"):
        matching(["*", "ptb-gru/*"])


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """Folder and line of a cell that nothing stopped."""
    folder = tmp_path_factory.mktemp("cell")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        from reproduce import run_cell

        return folder, run_cell(tiny(), folder / "runs", folder / "results", directory=str(corpus))


def test_a_finished_cell_has_a_line_and_its_log(finished):
    from reproduce import state

    folder, result = finished
    line = json.loads((folder / "results/ptb-lstm-small/tiny/seed0.json").read_text())
    assert line == result
    counted = line["multiply_adds"]
    # 8 weight blocks of 16 x 16 of each of two matrices; a score for each of 16 blocks takes 32; 31 words and <eos>.
    assert counted["blocks"] == 2 * 8 * 16 * 16
    assert counted["gates"] == 2 * 32 * 16
    assert counted["total"] == counted["blocks"] + counted["gates"] + counted["softmax"]
    assert line["relative_cost"] == counted["total"] / counted["dense"]
    assert counted["preset_dense"] == 2 * 8 * 256**2 + counted["softmax"] * 256 // 32
    assert line["realised_density"] == pytest.approx(0.5)
    assert 1 < line["test_perplexity"] < 100
    assert line["wall_seconds"] > 0
    assert line["decode"]["model_us"] > 0 < line["decode"]["dense_us"]
    assert {"command", "revision", "device", "jax", "parameters", "parameters_sha256", "steps"} <= line.keys()
    log = read_metrics(folder / "results/ptb-lstm-small/tiny/seed0.metrics.jsonl")
    assert [entry["step"] for entry in log if entry["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert state(tiny(), folder / "runs", folder / "results") == f"done (test {line['test_perplexity']:.2f})"


def test_test_perplexity_is_that_of_eval(finished, capsys):
    import eval as eval_script

    folder, result = finished
    eval_script.main(["--workdir", str(folder / "runs" / tiny().name)])
    assert capsys.readouterr().out.endswith(f"test perplexity: {result['test_perplexity']:.2f}\n")


def test_a_finished_cell_is_never_overwritten(finished):
    from reproduce import keep, result_path

    folder, _ = finished
    before = {path: path.read_bytes() for path in (folder / "results").rglob("*") if path.is_file()}
    with pytest.raises(FileExistsError, match="remove it"):
        keep(result_path(tiny(), folder / "results"), {}, folder / "runs" / tiny().name / "config.json")
    assert before == {path: path.read_bytes() for path in (folder / "results").rglob("*") if path.is_file()}


def test_the_command_skips_finished_cells(finished, monkeypatch, capsys):
    import reproduce

    folder, _ = finished
    monkeypatch.setattr(reproduce, "RUNS", folder / "runs")
    monkeypatch.setattr(reproduce, "RESULTS", folder / "results")
    monkeypatch.setattr(reproduce, "matching", lambda patterns: [tiny()])
    monkeypatch.setattr(reproduce, "run_cell", lambda *_, **__: pytest.fail("it ran"))
    reproduce.main(["tiny"])
    assert "ptb-lstm-small/tiny/seed0: skipped" in capsys.readouterr().out


def test_a_run_with_two_names_is_trained_once(finished, monkeypatch, capsys, tmp_path):
    import reproduce

    folder, line = finished
    chosen = dataclasses.replace(tiny(), variant="chosen")
    other = dataclasses.replace(tiny(**{"optim.learning_rate": 0.1}), variant="other")
    shutil.copytree(folder / "results", tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    monkeypatch.setattr(reproduce, "cells", lambda: [tiny(), chosen, other])
    monkeypatch.setattr(reproduce, "matching", lambda patterns: [chosen])
    monkeypatch.setattr(reproduce, "run_cell", lambda *_, **__: pytest.fail("it ran"))
    reproduce.main(["chosen"])
    assert "chosen/seed0: the run of ptb-lstm-small/tiny/seed0" in capsys.readouterr().out
    repeated = json.loads((tmp_path / "ptb-lstm-small/chosen/seed0.json").read_text())
    changed = {"cell", "variant", "command", "wall_seconds", "run_of"}
    assert {key for key in repeated if repeated[key] != line.get(key)} == changed
    assert repeated["run_of"] == line["cell"]
    logs = [tmp_path / f"ptb-lstm-small/{name}/seed0.metrics.jsonl" for name in ("tiny", "chosen")]
    assert logs[0].read_bytes() == logs[1].read_bytes()
    assert reproduce.finished_twin(other, tmp_path) is None


def test_list_runs_nothing(monkeypatch, capsys, tmp_path):
    import reproduce

    monkeypatch.setattr(reproduce, "RUNS", tmp_path)
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    reproduce.main(["--list", "ptb-qrnn/dynamic-0.9/*"])
    assert capsys.readouterr().out.split() == ["missing", "ptb-qrnn/dynamic-0.9/seed0"]
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_cell_goes_on_and_ends_the_same(finished, corpus, tmp_path, monkeypatch):
    from reproduce import run_cell, state

    report = training._Run.report

    def report_and_stop(self, step, *rest):
        report(self, step, *rest)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    runs, results = tmp_path / "runs", tmp_path / "results"
    with monkeypatch.context() as patch:
        patch.setattr(training._Run, "report", report_and_stop)
        with pytest.raises(InterruptedRunError):
            run_cell(tiny(), runs, results, directory=str(corpus))
    assert state(tiny(), runs, results) in ("at step 3 of 6", "at step 4 of 6")
    assert not results.exists()
    result = run_cell(tiny(), runs, results, directory=str(corpus))
    for key in ("parameters_sha256", "validation_perplexity", "test_perplexity"):
        assert result[key] == finished[1][key]
    assert len(json.loads((runs / "ptb-lstm-small/tiny/seed0.processes.json").read_text())) == 2


def test_wall_time_is_not_known_after_a_kill(tmp_path):
    from reproduce import Stopwatch

    path = tmp_path / "processes.json"
    watch = Stopwatch(path, "abc", False)
    with watch:
        pass
    assert watch.summary()["wall_seconds"] < 1
    watch.__enter__()
    assert watch.summary() == {"wall_seconds": None, "revision": "abc", "modified": False}
    with Stopwatch(path, "def", True):
        pass
    assert watch.summary() == {"wall_seconds": None, "revision": "abc, def", "modified": True}


def test_a_line_of_other_options_is_not_taken_for_the_cell(finished):
    from grid import read_line
    from reproduce import state

    folder, _ = finished
    other = tiny(**{"optim.learning_rate": 0.1})
    for refuse in (lambda: read_line(other, folder / "results"), lambda: state(other, folder, folder / "results")):
        with pytest.raises(ValueError, match=r"'optim.learning_rate': 0.1} under this name"):
            refuse()


def test_training_that_fails_is_a_result(corpus, tmp_path):
    from reproduce import run_cell, state

    cell = tiny(**{"optim.learning_rate": 1e30, "optim.warmup_steps": 0})
    result = run_cell(cell, tmp_path / "runs", tmp_path / "results", directory=str(corpus))
    assert "test_perplexity" not in result
    assert " at step " in result["failed"] or " after step " in result["failed"]
    assert str(tmp_path) not in result["failed"]
    assert state(cell, tmp_path / "runs", tmp_path / "results") == "failed"


def test_cells_differ_from_their_preset_only_in_what_is_compared():
    from grid import SIZES, SWEEP, TUNED, ablations, cells, longer, sweep, variants

    allowed = {"model.method", "model.sparsity", "model.hidden_size", "model.magnitude_unit", "model.gate_source"}
    compared, tried, others = ({preset: made(preset) for preset in SIZES} for made in (variants, sweep, ablations))
    for cell in cells():
        options = set(cell.options) - {"train.seed", *SIZES[cell.preset]}
        if cell.variant in compared[cell.preset]:
            assert options - allowed == set(TUNED.get((cell.preset, cell.options["model.method"]), {}))
        elif cell.variant in tried[cell.preset]:
            assert options - allowed <= set(SWEEP[cell.preset])
        elif cell.variant in longer(cell.preset):
            base = variants(cell.preset, tuned=False)[cell.variant.removesuffix("-6400-steps")]
            assert cell.options == {**SIZES[cell.preset], **base, "train.steps": 6400, "train.seed": 0}
        else:
            near = dict.fromkeys(("dynamic-0.5-cubic-softplus", "dynamic-0.0-softplus"), "softplus")
            near |= {f"dynamic-0.5-column-{name}": "column" for name in ("bounded", "softplus")}
            known = compared[cell.preset] | others[cell.preset]
            base = known[f"dynamic-0.5-{near[cell.variant]}" if cell.variant in near else "dynamic-0.5"]
            assert base.keys() <= options
            assert len([o for o in options if o not in base or cell.options[o] != base[o]]) == 1


@pytest.fixture(params=["as the preset has it", "tuned"])
def tuning(request, monkeypatch):
    """The grid as it is before and after something was chosen."""
    import grid

    chosen = {("ptb-lstm-small", "dynamic"): {"optim.learning_rate": 0.03}} if request.param == "tuned" else {}
    monkeypatch.setattr(grid, "TUNED", chosen)


@pytest.mark.usefixtures("tuning")
def test_the_sweep_tries_every_value_whatever_was_chosen():
    from grid import SWEEP, SWEPT, sweep, untuned, variants

    tried, made = sweep("ptb-lstm-small"), variants("ptb-lstm-small", tuned=False)
    preset = PRESETS["ptb-lstm-small"]
    named = set()
    for variant in SWEPT:
        for option, every in SWEEP["ptb-lstm-small"].items():
            section, name = option.split(".")
            runs = {key: options for key, options in tried.items() if key.startswith(f"{variant}-{name}-")}
            named |= runs.keys()
            own = getattr(getattr(preset, section), name)
            assert {*(options[option] for options in runs.values()), own} == set(every)
            for options in runs.values():
                assert {k: v for k, v in options.items() if k != option} == made[variant]
        centre = untuned("ptb-lstm-small", variant)
        assert {**variants("ptb-lstm-small"), **tried}[centre] == made[variant]
        named.add(centre)
    assert named - set(SWEPT) == tried.keys()


def test_what_is_tuned_is_what_the_sweep_says():
    """The options of the run with the lowest validation perplexity, once every run of a variant is there."""
    from grid import SEEDS, SWEEP, SWEPT, TUNED, sweep, untuned, variants
    from report_results import read_lines, values

    for preset in SWEEP:
        lines = {
            name: [line for line in found if line["seed"] == SEEDS[0]]
            for name, found in read_lines(ROOT / "benchmarks" / "results", preset).items()
        }
        for variant in SWEPT:
            plain = variants(preset, tuned=False)[variant]
            runs = {untuned(preset, variant): plain}
            runs |= {name: o for name, o in sweep(preset).items() if name.startswith(f"{variant}-")}
            if not all(lines[name] for name in runs):
                continue
            best = min(runs, key=lambda name: min(values(lines[name], "validation_perplexity"), default=math.inf))
            wanted = {option: value for option, value in runs[best].items() if value != plain.get(option)}
            assert TUNED.get((preset, plain["model.method"]), {}) == wanted, variant
