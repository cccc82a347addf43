"""The page of the comparison, made from lines that are made up: its figures, its verdicts and what is missing."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).parents[1]

matplotlib = pytest.importorskip("matplotlib", reason="plots need the extra plots")


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def line(cell, test, **changes):
    """What reproduce.py writes about a cell, in round figures."""
    factor = 0.75 if "dynamic" in cell.variant else 1.0
    counted = {"gates": 2**17, "blocks": 2**19, "softmax": 2_560_000, "dense": 3_600_000, "preset_dense": 3_600_000}
    return {
        "cell": cell.name,
        "seed": cell.seed,
        "options": cell.options,
        "command": cell.command(f"runs/grid/{cell.name}"),
        "steps": 800,
        "validation_perplexity": test + 5.0,
        "test_perplexity": test,
        "realised_density": 0.5,
        "hidden_size": 256,
        "parameters": 6_000_000,
        "multiply_adds": counted | {"total": int(3_600_000 * factor)},
        "relative_cost": factor,
        "wall_seconds": 360.0,
        "platform": "cpu",
        "processor": "Chip",
        "cores": 2,
        "jax": "0.10.2",
        "python": "3.11.7",
        "revision": "0123456789abcdef",
        "modified": False,
    } | changes


def write_lines(folder, perplexities, **changes):
    """Lines of some cells of ptb-lstm-small: {variant: [test perplexity of seed 0, 1, ...]}."""
    from grid import cells

    for cell in cells():
        if cell.preset == "ptb-lstm-small" and cell.seed < len(perplexities.get(cell.variant, [])):
            path = folder / "quality" / f"{cell.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(line(cell, perplexities[cell.variant][cell.seed], **changes)) + "\n")


def page(tmp_path, perplexities, **changes):
    from report_results import write

    results, docs = tmp_path / "results", tmp_path / "docs"
    docs.mkdir(exist_ok=True)
    write_lines(results, perplexities, **changes)
    write(results, docs)
    return (docs / "results.md").read_text()


def claim(text, words):
    """Cells of a claim's row in the first table."""
    (row,) = re.findall(rf"^\| ({re.escape(words)} \|.*) \|$", text, flags=re.MULTILINE)
    return row.split(" | ")[1:]


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 15, 29, 30])
def test_quantiles_are_those_of_student(freedom):
    from intervals import quantile

    assert quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=5e-5)


def test_quantiles_between_and_beyond_are_never_too_small():
    from intervals import quantile

    assert quantile(2.9) == quantile(2)
    assert quantile(1e6) > stats.t.ppf(0.975, 1e6)


def test_mean_and_interval_are_those_of_scipy():
    from intervals import mean

    values = [101.0, 103.5, 99.25, 104.0]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = mean(values)
    assert found.value == pytest.approx(np.mean(values))
    np.testing.assert_allclose((found.value - found.half_width, found.value + found.half_width), (low, high), rtol=1e-5)
    assert mean([3.0]) == (3.0, None)


def test_difference_is_that_of_welch():
    from intervals import difference, quantile

    one, other = [101.0, 103.5, 99.25], [110.0, 111.0, 118.0, 112.5]
    reference = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    found = difference(one, other)
    assert found.value == pytest.approx((reference.low + reference.high) / 2)
    # Degrees of freedom are rounded down: a little wider, in this proportion.
    freedom = stats.ttest_ind(one, other, equal_var=False).df
    exact = (reference.high - reference.low) / 2
    assert found.half_width == pytest.approx(
        exact * quantile(freedom) / stats.t.ppf(0.975, freedom),
        rel=1e-4,
    )
    assert difference([1.0, 1.0], [3.0, 3.0]) == (-2.0, 0.0)
    assert difference([1.0], [3.0, 4.0]) == (-2.5, None)


def test_verdicts_come_from_the_figures(tmp_path):
    text = page(
        tmp_path,
        {
            "dynamic-0.5": [160.0, 161.0, 162.0],
            "dense": [200.0, 201.0, 202.0],
            "dense-equal-0.5": [150.0, 151.0, 152.0],
            "magnitude-0.5": [150.0, 180.0, 155.0],
            "static-block-0.5": [190.0],
        },
    )
    difference, seeds, verdict = claim(text, "dynamic at 0.5 is better than dense of the same size")
    half = stats.t.ppf(0.975, 4) * math.sqrt(2 / 3)
    assert (difference, seeds, verdict) == (f"-40.00 ± {half:.2f}", "3 / 3", "**holds**")
    assert claim(text, "dynamic at 0.5 is better than dense of equal cost")[2] == "**does not hold**"
    assert claim(text, "dynamic at 0.5 is better than magnitude pruning")[2].startswith("open: lower, but the interval")
    assert claim(text, "dynamic at 0.5 is better than static blocks") == [
        "-29.00",
        "3 / 1",
        "open: lower, but a side has one seed only",
    ]
    assert claim(text, "dynamic at 0.9 is better than magnitude pruning")[2].startswith("not known")


def test_the_table_has_means_with_intervals(tmp_path):
    text = page(tmp_path, {"dynamic-0.5": [160.0, 161.0, 162.0], "static-block-0.5": [190.0]})
    half = stats.t.ppf(0.975, 2) * math.sqrt(1 / 3)
    (row,) = (r for r in text.splitlines() if r.startswith("| [dynamic-0.5]"))
    # No times: beside other work they are none of the models'.
    assert row.endswith(f"| 3 | 166.00 ± {half:.2f} | 161.00 ± {half:.2f} |")
    assert "| 0.750 | 0.750 | 0.5000 |" in row
    (row,) = (r for r in text.splitlines() if r.startswith("| [static-block-0.5]"))
    assert "| 1 | 195.00 | 190.00 |" in row
    assert "0.4 hours of training in all" in text


def test_missing_cells_are_named(tmp_path):
    from grid import cells

    text = page(tmp_path, {"dense": [200.0, 201.0]})
    every = sum(cell.preset == "ptb-lstm-small" for cell in cells())
    assert f"- `ptb-lstm-small`: {every - 2} of {every}: " in text
    assert "dense (seed 2)" in text
    assert "dense (seed 1)" not in text
    assert "- `ptb-qrnn`: all 24 cells." in text


def test_failed_cells_are_named_and_not_in_a_mean(tmp_path):
    write_lines(tmp_path / "results", {"dense": [200.0, 201.0, 999.0]}, failed="The loss is nan at step 7")
    text = page(tmp_path, {"dense": [200.0, 202.0], "dynamic-0.5": [100.0, 101.0]})
    assert "- `ptb-lstm-small/dense/seed2` failed. The loss is nan at step 7." in text
    (row,) = (r for r in text.splitlines() if r.startswith("| [dense]"))
    assert "| 2, failed: 1 | " in row
    assert "999" not in text
    found = claim(text, "dynamic at 0.5 is better than dense of the same size")
    assert found[1:] == ["2 / 2", "**holds**; runs that failed are not in it: 1"]


def test_the_same_lines_give_the_same_files(tmp_path):
    perplexities = {"dense": [200.0, 201.0], "dynamic-0.5": [160.0, 161.0], "dynamic-0.75": [170.0]}
    made = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        page(tmp_path / name, perplexities)
        made.append({path.name: path.read_bytes() for path in sorted((tmp_path / name / "docs").iterdir())})
    assert made[0] == made[1]
    assert made[0].keys() == {"results.md", "results_ptb-lstm-small.svg"}


def test_an_old_plot_goes_when_there_is_nothing_to_show(tmp_path):
    (tmp_path / "docs").mkdir()
    old = tmp_path / "docs" / "results_ptb-lstm.svg"
    old.write_text("old")
    text = page(tmp_path, {})
    assert not old.exists()
    assert text.count("No cell has been run.") == 4


def test_the_committed_page_is_what_the_raw_lines_give(tmp_path):
    from report_results import write

    write(ROOT / "benchmarks" / "results", tmp_path)
    made = {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    committed = {path.name: path.read_bytes() for path in sorted((ROOT / "docs").glob("results*")) if path.is_file()}
    assert made.keys() == committed.keys()
    for name, content in made.items():
        # Another matplotlib draws with other coordinates, and names itself.
        if name.endswith(".md") or f"Matplotlib v{matplotlib.__version__}," in committed[name].decode():
            assert content == committed[name], f"{name} is not up to date: run python benchmarks/report.py"
