"""The notebooks are what their scripts say, they run, and they show what they print and draw."""

import base64
import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
TOOL = runpy.run_path(str(ROOT / "docs" / "make_notebooks.py"))
LARGEST = 150_000
"""Bytes of a figure: every clone has all of them."""

every_notebook = pytest.mark.parametrize("name", TOOL["NAMES"])


def stored(name):
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def kinds_of_outputs(notebook):
    """Of every cell, what it shows: text of a stream, figures, values."""
    return [
        {kind for output in cell.get("outputs", []) for kind in output.get("data", [output.get("name")])}
        for cell in notebook.cells
    ]


def test_every_notebook_is_made_from_a_script():
    assert sorted(path.stem for path in EXAMPLES.glob("*.ipynb")) == sorted(TOOL["NAMES"])


@every_notebook
def test_a_notebook_has_the_cells_of_its_script(name):
    def cells(notebook):
        return [(cell.cell_type, cell.source) for cell in notebook.cells]

    made = TOOL["notebook_of"](EXAMPLES / f"{name}.py")
    assert len(made.cells) > 5
    assert cells(stored(name)) == cells(made), f"python docs/make_notebooks.py {name} makes the notebook anew."


@every_notebook
def test_a_notebook_was_run_from_top_to_bottom(name):
    notebook = stored(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    shown = set().union(*kinds_of_outputs(notebook))
    assert "stdout" in shown
    assert "stderr" not in shown
    figures = [
        output.data["image/png"] for cell in code for output in cell.outputs if "image/png" in output.get("data", {})
    ]
    assert len(figures) == sum(cell.source.count(".savefig(") for cell in code)
    assert all(len(base64.b64decode(figure)) < LARGEST for figure in figures)


@pytest.mark.parametrize("name", TOOL["NAMES"])
def test_a_notebook_runs(name, monkeypatch):
    monkeypatch.setenv("STEPS", "5")
    notebook = stored(name)
    expected = kinds_of_outputs(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    TOOL["execute"](notebook)
    assert kinds_of_outputs(notebook) == expected
