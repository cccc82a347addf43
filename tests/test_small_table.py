"""Many cells of the grid on one device: which ones run."""

import json
import sys

import pytest

from benchmarks.quality import small_table
from benchmarks.quality.grid import cells, matching


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Calls the command with arguments and returns the cells that it would train, and how."""

    def call(*arguments):
        calls = []
        monkeypatch.setattr(
            small_table, "train_until", lambda end, named, *rest, **options: calls.append((named, rest, options)) or 0
        )
        monkeypatch.setattr(small_table, "RESULTS", tmp_path / "results")
        monkeypatch.setattr(small_table.signal, "signal", lambda *_: None)
        monkeypatch.setattr(sys, "argv", ["small_table", "--minutes=1", f"--output={tmp_path / 'out'}", *arguments])
        small_table.main()
        return calls

    return call


def test_committed_cells_are_left_out_and_the_order_is_the_grids(trained, tmp_path):
    first, second, *_ = matching(["ptb-lstm-small/*"])
    path = tmp_path / "results" / f"{first.name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"options": first.options}))
    ((named, (same, output, written), options),) = trained("--jobs", "4")
    small = [cell for cell in cells() if cell.preset in ("ptb-lstm-small", "ptb-qrnn-small")]
    assert named == same == small[1:]
    assert named[0] == second
    assert (output, written, options["jobs"]) == (tmp_path / "out", set(), 4)


def test_nothing_left_is_said(trained, tmp_path, capsys):
    (cell,) = matching(["ptb-lstm-small/dense/seed0"])
    path = tmp_path / "results" / f"{cell.name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"options": cell.options}))
    assert trained(cell.name) == []
    assert "have a committed line" in capsys.readouterr().out


def test_shortened_cells_are_other_cells(trained):
    ((named, (trained_cells, *_), options),) = trained("--epochs=1", "--epoch-steps=20", "ptb-lstm-small/dense/seed1")
    assert [cell.name for cell in named] == ["ptb-lstm-small/dense/seed1"]
    assert [cell.options["train.steps"] for cell in trained_cells] == [20]
    assert (options["epochs"], options["epoch-steps"]) == (1, 20)
