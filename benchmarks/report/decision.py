"""docs/should_i_use_it.md: a table for each device that says for which width, streams and sparsity skipping pays.

A cell is the speed of a whole LSTM that decodes, over that of the fastest dense LSTM of any library that was timed in
the same run. Each cell links to its raw line in raw_lines.md.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.report.runs import Row, Run, read_runs
from benchmarks.report.tables import MISSING, table
from bwds.timing import PAYS

HERE = Path(__file__).resolve().parent
STREAMS = (1, 4, 16)
SPARSITIES = (0.5, 0.75, 0.9)
LOSES = 2.0 - PAYS
"""The speed-up up to which skipping loses; one between this and ``PAYS`` is within the noise."""


def speedup(row: Row) -> tuple[float, str]:
    """Speed-up over the fastest dense model of the same run, and which model that is."""
    names = {key.removesuffix("_us") for key in row if key.endswith("_us")}
    dense = {name for name in names if not name.endswith(("bound", "quartiles")) and name != "dynamic"}
    fastest = min(dense, key=lambda name: row[f"{name}_us"])
    return row[f"{fastest}_us"] / row["dynamic_us"], fastest


def latest(runs: list[Run]) -> dict[tuple[Any, ...], tuple[Run, Row]]:
    """The last line of every case: (hardware, type, width, streams, sparsity)."""
    found: dict[tuple[Any, ...], tuple[Run, Row]] = {}
    for run in runs:
        for row in run.of("model_decode"):
            # Models whose blocks are chosen by norms are in the table of all cases.
            if row["cell"] == "lstm" and row.get("gate_source") != "norm":
                key = (run.hardware, row["dtype"], row["hidden"], row["batch"], row["sparsity"])
                found[key] = (run, row)
    return found


def _anchor(key: tuple[Any, ...]) -> str:
    letters = "".join(c if c.isalnum() else "-" for c in "-".join(map(str, key)).lower())
    return "-".join(part for part in letters.split("-") if part)


def _cell(key: tuple[Any, ...], row: Row) -> str:
    ratio, _ = speedup(row)
    shown = f"{ratio:.2f}"
    word = f"**{shown}**" if ratio > PAYS else f"*{shown}*" if ratio <= LOSES else shown
    return f"[{word}](raw_lines.md#{_anchor(key)})"


def _draw(path: Path, found: dict[tuple[Any, ...], tuple[Run, Row]]) -> None:
    """Speed-up of one stream in float32 against sparsity, a panel a device."""
    # Imported here because the tables need no matplotlib.
    from benchmarks.report.performance_plots import Curves, draw, gate_of

    drawn: dict[str, Curves] = {}
    for (device, dtype, width, streams, sparsity), (_, row) in sorted(found.items(), key=lambda item: item[0]):
        if dtype == "float32" and streams == 1:
            panel = drawn.setdefault(device, {})
            panel.setdefault((width, gate_of(row), "model"), {})[sparsity] = speedup(row)[0]
    draw(path, drawn, "tokens/s over the fastest dense LSTM")


def _tables(found: dict[tuple[Any, ...], tuple[Run, Row]]) -> list[str]:
    """A heading and a table for each device, with a line for each type and width."""
    streams = [f"{n} stream{'s' * (n > 1)}, {s}" for n in STREAMS for s in SPARSITIES]
    lines: dict[str, list[list[str]]] = {}
    for hardware, dtype, width in sorted({key[:3] for key in found}, key=lambda k: (k[0], k[1] != "float32", k[2])):
        cells = [(hardware, dtype, width, n, s) for n in STREAMS for s in SPARSITIES]
        shown = [_cell(key, found[key][1]) if key in found else MISSING for key in cells]
        lines.setdefault(hardware, []).append([dtype, f"{width:,}", *shown])
    parts = [["", f"### {name}", "", *table(["type", "width", *streams], rows)] for name, rows in lines.items()]
    return [line for part in parts for line in part][1:]


def write(results_dir: Path, docs_dir: Path) -> None:
    """Writes should_i_use_it.md, its picture speedup.svg, and raw_lines.md.

    Args:
        results_dir: folder of the raw files, *.jsonl.
        docs_dir: folder of the pages.
    """
    found = latest(read_runs(results_dir))
    page = (HERE / "decision_template.md").read_text().replace("{tables}\n", "\n".join(_tables(found)) + "\n")
    (docs_dir / "should_i_use_it.md").write_text(page)
    _draw(docs_dir / "speedup.svg", found)
    raw, runs = [(HERE / "raw_lines_template.md").read_text()], {id(run): run for run, _ in found.values()}
    for run in runs.values():
        raw.append(
            f"## {run.hardware}: [{run.name}](../benchmarks/results/{run.name})\n\n"
            f"jax {run.environment['jax']}, revision `{run.environment['revision'][:8]}`:\n\n"
            f"```\n{run.environment['command']}\n```\n"
        )
        raw += [
            f'<a id="{_anchor(key)}"></a>{key[1]}, width {key[2]:,}, streams {key[3]}, sparsity {key[4]}; '
            f"fastest dense: `{speedup(row)[1]}`\n\n```json\n{json.dumps(row)}\n```\n"
            for key, (of, row) in found.items()
            if of is run
        ]
    (docs_dir / "raw_lines.md").write_text("\n".join(raw))
