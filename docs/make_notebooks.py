"""Makes the notebooks of the examples from their scripts, and runs them, so that they show what they print and draw.

python docs/make_notebooks.py            all of them
python docs/make_notebooks.py digits     one

The scripts are what one edits: `examples/digits.py` becomes `examples/digits.ipynb`. The environment variables that a
script reads, such as STEPS, hold here too.
"""

import argparse
import tempfile
from pathlib import Path

import jupytext
import nbclient
import nbformat

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = ["digits", "gpt"]


def notebook_of(script):
    """The notebook of a script in jupytext's percent format, without outputs; the same whenever it is made."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i}", nbformat.NotebookNode()
    return notebook


def execute(notebook):
    """Runs all cells, in a folder of their own, where they leave their files.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        options = {"timeout": None, "record_timing": False, "coalesce_streams": True}
        nbclient.NotebookClient(notebook, resources=resources, **options).execute()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all where none is given")
    names = parser.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"there is no notebook {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}.")
    for name in names:
        notebook = notebook_of(EXAMPLES / f"{name}.py")
        execute(notebook)
        nbformat.validate(notebook)
        nbformat.write(notebook, EXAMPLES / f"{name}.ipynb")
        print(EXAMPLES / f"{name}.ipynb")


if __name__ == "__main__":
    main()
