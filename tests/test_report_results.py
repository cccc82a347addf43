"""The page of the comparison, made from lines that are made up: its figures, its verdicts and what is missing."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.quality.grid import cells
from benchmarks.quality.intervals import difference, mean, quantile
from benchmarks.report.results import write

ROOT = Path(__file__).parents[1]

matplotlib = pytest.importorskip("matplotlib", reason="plots need the extra plots")


def line(cell, test, **changes):
    """What reproduce.py writes about a cell, in round figures; validation falls to its last value by 1 an epoch."""
    config = cell.config()
    epochs, every = config.train.steps // config.train.eval_every, config.train.eval_every
    counted = {"gates": 2**18, "blocks": 2**19, "softmax": 2_560_000, "preset_dense": 3_608_576}
    return {
        "cell": cell.name,
        "preset": cell.preset,
        "variant": cell.variant,
        "seed": cell.seed,
        "options": cell.options,
        "steps": config.train.steps,
        "validation_perplexity": test + 5.0,
        "test_perplexity": test,
        "multiply_adds": counted | {"total": sum(counted.values()) - counted["preset_dense"]},
        "decode": {"model_us": 400.0, "model_quartiles_us": [390.0, 400.0, 420.0]},
        "validation_curve": [[every * (e + 1), test + 5.0 + epochs - 1 - e] for e in range(epochs)],
        "gradient_norm_quantiles": [0.1, 0.2 + 0.1 * cell.seed, 0.9],
    } | changes


def write_lines(folder, perplexities, preset="ptb-lstm-small", **changes):
    """Lines of some cells of a preset: {variant: [test perplexity of seed 0, 1, ...]}."""
    for cell in cells():
        if cell.preset == preset and cell.seed < len(perplexities.get(cell.variant, [])):
            path = folder / "quality" / f"{cell.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(line(cell, perplexities[cell.variant][cell.seed], **changes)) + "\n")


def page(tmp_path, perplexities, *, published=117.0):
    """The page's text, with ``published`` as the test perplexity of the published model; None: it has not been run."""
    results, docs = tmp_path / "results", tmp_path / "docs"
    docs.mkdir(parents=True, exist_ok=True)
    write_lines(results, {} if published is None else {"dense": [published]}, "ptb-lstm-zaremba")
    write_lines(results, perplexities)
    write(results, docs)
    return (docs / "results.md").read_text()


def row(text, first):
    """Fields after the first of the one row that begins with it."""
    (found,) = re.findall(rf"^\| {re.escape(first)} \| (.*) \|$", text, flags=re.MULTILINE)
    return found.split(" | ")


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 15, 29, 30])
def test_quantiles_are_those_of_student(freedom):
    assert quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=5e-5)


def test_quantiles_between_and_beyond_are_never_too_small():
    assert quantile(2.9) == quantile(2)
    assert quantile(1e6) > stats.t.ppf(0.975, 1e6)


def test_mean_and_interval_are_those_of_scipy():
    values = [101.0, 103.5, 99.25, 104.0]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = mean(values)
    assert found.value == pytest.approx(np.mean(values))
    np.testing.assert_allclose((found.value - found.half_width, found.value + found.half_width), (low, high), rtol=1e-5)
    assert mean([3.0]) == (3.0, None)


def test_difference_is_that_of_welch():
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


RUNS = {
    "dense": [120.0, 121.0, 122.0],
    "dynamic-softplus-0.5": [116.0, 117.0, 118.0],
    "dynamic-linear-0.5": [130.0, 131.0, 132.0],
    "magnitude-0.5": [110.0, 111.0, 112.0],
    "dense-equal-0.5": [119.0],
    "dynamic-bias-0.5": [118.0, 640.0, 119.0],
}


def test_verdicts_come_from_the_figures(tmp_path):
    text = page(tmp_path, RUNS)
    half = 100 * stats.t.ppf(0.975, 4) * math.sqrt(2 / 3) / 121
    assert row(text, "dynamic-softplus-0.5 reaches dense") == [
        f"**holds**: -3.3 ± {half:.1f}% (seeds: 3 / 3)",
        "not run yet",
    ]
    ours = "dynamic-softplus-0.5 is better than"
    assert row(text, "dynamic-linear-0.5 reaches dense")[0].startswith("**does not hold**: +8.3 ±")
    assert row(text, f"{ours} magnitude-0.5")[0].startswith("**does not hold**: +5.4 ±")
    assert row(text, f"{ours} dense of equal cost")[0] == "open, one seed only: -1.7% (seeds: 3 / 1)"
    assert row(text, f"{ours} gates that are the same for every input")[0].startswith("open: -60.0 ±")


def test_to_reach_dense_is_to_be_less_than_one_percent_above(tmp_path):
    near = page(tmp_path, {"dense": [120.0, 120.0], "dynamic-linear-0.5": [121.0, 121.0]})
    assert row(near, "dynamic-linear-0.5 reaches dense")[0] == "**holds**: +0.8 ± 0.0% (seeds: 2 / 2)"
    over = page(tmp_path, {"dense": [120.0, 120.0], "dynamic-linear-0.5": [121.4, 121.4]})
    assert row(over, "dynamic-linear-0.5 reaches dense")[0] == "**does not hold**: +1.2 ± 0.0% (seeds: 2 / 2)"


@pytest.mark.parametrize(
    ("published", "said"),
    [
        (None, "**Not run yet.**"),
        (115.0, "**Reached**: -1.5% against 116.7."),
        (125.0, "**Not reached**: +7.1% against 116.7."),
    ],
)
def test_nothing_counts_before_the_published_figure_is_reached(tmp_path, published, said):
    text = page(tmp_path, RUNS, published=published)
    assert said in text
    word = "**holds**" if published == 115.0 else "does not count yet"
    assert row(text, "dynamic-softplus-0.5 reaches dense")[0].startswith(f"{word}: -3.3 ±")
    assert row(text, "TensorFlow") == "178.6 142.6 131.9 128.4 127.1 120.3 flat 116.7".split()
    seeds = 0 if published is None else 1
    last = ["-"] * 7 + ["not run yet"]
    if published is not None:
        last = [f"{published + 5 + more:.1f}" for more in (12, 11, 10, 9, 8, 7, 0)] + [f"{published:.2f}"]
    assert row(text, f"here, seeds: {seeds}") == last


def test_the_table_has_means_with_intervals_cost_and_gradients(tmp_path):
    text = page(tmp_path, RUNS)
    half = stats.t.ppf(0.975, 2) * math.sqrt(1 / 3)
    # 2^18 + 2^19 of the 2^20 multiply-adds that the layers of the dense model have; the norm is that of the last seed.
    assert row(text, "dynamic-softplus-0.5") == [
        "3",
        f"122.00 ± {half:.2f}",
        f"117.00 ± {half:.2f}",
        "0.927",
        "0.750",
        "0.4",
    ]
    assert row(text, "dense-equal-0.5")[:3] == ["1", "124.00", "119.00"]


def test_the_sweep_names_the_best_once_all_of_a_method_is_there(tmp_path):
    rates = ("sgd-10", "sgd-20", "sgd-40", "adamw-0.002")
    runs = {f"dense-two-epochs-{name}": [200.0 + i] for i, name in enumerate(rates[::-1])}
    runs["magnitude-0.5-two-epochs-sgd-10"] = [190.0]
    text = page(tmp_path, runs)
    assert row(text, "LSTM, 2 x 256 | dense") == ["208.0", "207.0", "206.0", "205.0", "adamw-0.002"]
    assert row(text, "LSTM, 2 x 256 | magnitude-0.5") == ["195.0", "-", "-", "-", "open"]
    assert "Not run yet." in page(tmp_path / "none", {}).split("## Optimiser and rate")[1]


def test_the_first_epochs_of_a_run_to_the_end_are_in_the_sweep(tmp_path):
    """Its curve falls from 132 to 125, by 1 an epoch. What pruning leaves after two epochs depends on the steps."""
    text = page(tmp_path, {"dense": [120.0, 90.0], "magnitude-0.5": [120.0], "dense-two-epochs-sgd-40": [150.0]})
    assert row(text, "LSTM, 2 x 256 | dense") == ["131.0", "155.0", "open"]
    assert "| LSTM, 2 x 256 | magnitude-0.5 |" not in text


def test_failed_cells_are_counted_and_not_in_a_mean(tmp_path):
    write_lines(tmp_path / "results", {"dense": [200.0, 201.0, 999.0]}, failed="The loss is nan at step 7")
    text = page(tmp_path, {"dense": [120.0, 122.0], "dynamic-softplus-0.5": [100.0, 101.0]})
    assert row(text, "dense")[::2] == ["2, failed: 1", "121.00 ± 12.71", "0.750"]
    assert "999" not in text
    found = row(text, "dynamic-softplus-0.5 reaches dense")[0]
    assert found.startswith("**holds**: -16.9 ±")
    assert found.endswith("% (seeds: 2 / 2, failed: 1)")
    assert row(text, "`ptb-lstm-small`") == ["4", "1", "74"]


def test_the_seeds_and_the_devices_of_our_method_stand_side_by_side(tmp_path):
    runs = {"dynamic-softplus-0.5": [100.0, 102.0, 99.0, 101.0, 100.0], "dynamic-softplus-0.5-two-devices": [100.5]}
    wanted = ["5", "99.00 to 102.00", "3.0%", "100.50, +0.5%"]
    part = page(tmp_path, runs).partition("## How far apart runs end")[2].partition("\n## ")[0]
    assert row(part, "LSTM, 2 x 256") == wanted


def test_every_line_is_a_row_of_the_csv(tmp_path):
    runs = {cell.variant: [120.0] for cell in cells() if cell.preset == "ptb-lstm-small"}
    page(tmp_path, runs)
    with (tmp_path / "docs" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["preset"] for r in rows] == ["ptb-lstm-zaremba"] + ["ptb-lstm-small"] * len(runs)
    (swept,) = (r for r in rows if r["variant"] == "magnitude-0.5-two-epochs-sgd-40")
    assert (swept["seed"], swept["multiply_adds.gates"], swept["decode.model_us"]) == ("0", "262144", "400.0")
    assert swept["validation_curve"] == "2323:126.0 4646:125.0"
    assert swept["decode.model_quartiles_us"] == "390.0 400.0 420.0"
    assert swept["failed"] == swept["decode.dense_us"] == ""


def test_a_run_that_learns_nothing_does_not_set_the_scale(tmp_path):
    page(tmp_path, RUNS | {"dynamic-bias-0.5": [640.0]})
    picture = (tmp_path / "docs" / "results_ptb-lstm-small.svg").read_text()
    assert "0.5 ↑ 640" in picture
    assert "dynamic-bias-0.5 ↑ 645" in picture
    ticks = [float(t) for t in re.findall(r">(\d+)</text>", picture)]
    assert max(ticks) < 250


def test_the_same_lines_give_the_same_files(tmp_path):
    made = []
    for name in ("one", "other"):
        page(tmp_path / name, {"dense": [120.0, 121.0], "dynamic-linear-0.5": [116.0], "dynamic-linear-0.75": [117.0]})
        made.append({path.name: path.read_bytes() for path in sorted((tmp_path / name / "docs").iterdir())})
    assert made[0] == made[1]
    assert made[0].keys() == {"results.md", "results.csv", "results_ptb-lstm-small.svg"}


def test_without_lines_it_says_so_and_an_old_plot_goes(tmp_path):
    (tmp_path / "docs").mkdir()
    old = tmp_path / "docs" / "results_ptb-lstm.svg"
    old.write_text("old")
    text = page(tmp_path, {}, published=None)
    assert not old.exists()
    for words in ("LSTM, 2 x 256 (`ptb-lstm-small`)", "QRNN, 2 x 1536 (`ptb-qrnn`, the size of the paper)"):
        assert f"{words}: not run yet." in text
    assert not re.search(r"\{\w+\}|nan", text)


def test_the_committed_page_is_what_the_raw_lines_give(tmp_path):
    write(ROOT / "benchmarks" / "results", tmp_path)
    made = {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    committed = {path.name: path.read_bytes() for path in sorted((ROOT / "docs").glob("results*")) if path.is_file()}
    assert made.keys() == committed.keys()
    for name, content in made.items():
        # Another matplotlib draws with other coordinates, and names itself.
        if not name.endswith(".svg") or f"Matplotlib v{matplotlib.__version__}," in committed[name].decode():
            assert content == committed[name], f"{name} is not up to date: run python benchmarks/report.py"
