"""How much of dense's work a method needs to stay near dense's perplexity, and what a token of a variant takes."""

import json
import math

import pytest
from test_report_results import write_lines

from benchmarks.quality import variant_times
from benchmarks.quality.grid import Cell
from benchmarks.report.frontier import Point, frontier, least_share
from benchmarks.report.quality_lines import read_lines
from bwds import PRESETS, cost


def test_between_two_variants_the_logarithm_is_linear():
    limit = math.sqrt(100.0 * 144.0)
    assert least_share([Point(0.5, 100.0), Point(0.25, 144.0)], limit) == "0.38"
    assert least_share([Point(0.25, 144.0), Point(1.0, 90.0), Point(0.5, 100.0)], limit) == "0.38"
    # Only what is denser than the first variant beyond the limit counts, though a sparser one happens to be within.
    assert least_share([Point(1.0, 100.0), Point(0.5, 144.0), Point(0.25, 99.0)], limit) == "0.75"


def test_outside_of_what_was_run_only_a_bound_is_said():
    assert least_share([Point(0.5, 100.0), Point(0.25, 110.0)], 110.0) == "at most 0.25"
    assert least_share([Point(0.5, 100.0)], 99.0) == "above 0.50"
    assert least_share([], 99.0) == "-"


def test_the_limit_is_a_percent_above_the_mean_of_dense(tmp_path):
    full = cost(PRESETS["ptb-lstm-small"].model)
    half = {"gates": 0, "blocks": full.dense // 2, "total": full.dense, "preset_dense": full.dense}
    assert frontier(read_lines(tmp_path)) == ["Not run yet."]
    write_lines(tmp_path, {"dense": [99.0, 101.0]}, multiply_adds=half)
    write_lines(tmp_path, {"magnitude-0.5": [101.5]}, multiply_adds=half | {"total": full.dense - half["blocks"]})
    # A quarter of the recurrent layers' multiply-adds is saved: half by skipping, less a quarter for the gate.
    write_lines(tmp_path, {"dynamic-softplus-0.5": [100.9]}, multiply_adds=half | {"total": full.dense - 2**18})
    recurrent = 2 * 2 * 256 * 4 * 256
    lost = half["blocks"] / recurrent
    assert frontier(read_lines(tmp_path)) == [
        "| method | LSTM |",
        "| --- | --- |",
        f"| magnitude | {1 - lost * math.log(1.01) / math.log(1.015):.2f} |",
        "| dynamic-softplus | at most 0.75 |",
    ]


def test_times_are_of_every_variant_and_stand_beside_the_smaller_preset(tmp_path, monkeypatch):
    small = {"model.hidden_size": 32, "model.block_size": 16, "model.vocab_size": 50}
    made = {
        "dense": small | {"model.method": "dense"},
        "dynamic-norm-0.5": small | {"model.gate_source": "norm", "model.sparsity": 0.5},
    }
    monkeypatch.setattr(variant_times, "variants", lambda preset: made)
    path = tmp_path / variant_times.FILE
    monkeypatch.setattr("sys.argv", ["variant_times", "--preset", "ptb-lstm", "--turns", "3", "--output", str(path)])
    variant_times.main()
    environment, *lines = map(json.loads, path.read_text().splitlines())
    assert environment["benchmark"] == "environment"
    assert [line["variant"] for line in lines] == list(made)
    for line in lines:
        low, median, high = line["token_quartiles_us"]
        assert 0 < low <= median <= high
        assert line["dense_ratio"] == pytest.approx(line["token_us"] / lines[0]["token_us"], rel=1e-3)
        config = Cell("ptb-lstm", line["variant"], 0, made[line["variant"]]).config().model
        assert line["multiply_adds"] == cost(config).total
    found = variant_times.relative_times(tmp_path)
    assert found["ptb-lstm-small"] == {line["variant"]: line["dense_ratio"] for line in lines}
    assert found["ptb-qrnn-small"] == {}
