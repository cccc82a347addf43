"""docs/performance.md: tables and plots of times, put in place of the names in braces of performance_template.md.

The page has the cases that say most, a CSV file beside it has all.

Every raw file is a list of runs, each an environment line and the lines of its cases (``common.Results``).
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.report.tables import MISSING, number, table, write_csv

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]
KINDS = ("decode", "batched", "train_step", "model_decode", "word_profile")
"""Values of "benchmark" in the raw lines; what else a file may hold is not for this page."""
BASELINES = {
    "dense_float32": "dense, float32",
    "pytorch": "PyTorch",
    "pytorch_without_onednn": "PyTorch without oneDNN",
    "pytorch_graph": "PyTorch, one CUDA graph",
    "pytorch_float16": "PyTorch, float16",
    "pytorch_graph_float16": "PyTorch, float16, one CUDA graph",
    "cudnn": "cuDNN",
}


class Run(NamedTuple):
    """One run of one command."""

    name: str
    environment: Row
    rows: list[Row]

    @property
    def hardware(self) -> str:
        """What it ran on, in words."""
        found = self.environment
        count = found["cores"] if found["platform"] == "cpu" else found["devices"]
        unit = "core" if found["platform"] == "cpu" else "device"
        words = f"{found['processor'] if unit == 'core' else found['device']}, {count} {unit}{'s' * (count > 1)}"
        if unit == "core" and found["devices"] > 1:
            words += f", columns sharded over {found['devices']} CPU devices"
        return words

    def of(self, kind: str) -> list[Row]:
        """Its cases of one kind."""
        return [row for row in self.rows if row["benchmark"] == kind]


def read_runs(results_dir: Path) -> list[Run]:
    """All runs that have times, by the name of their file and in its order."""
    runs: list[Run] = []
    for path in sorted(results_dir.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row.get("benchmark") == "environment":
                runs.append(Run(path.name, row, []))
            elif runs and runs[-1].name == path.name and "benchmark" in row:
                runs[-1].rows.append(row)
    return [run for run in runs if any(run.of(kind) for kind in KINDS)]


# Figures in words -----------------------------------------------------------------------------------------------------


def _seconds(microseconds: float) -> tuple[float, str]:
    """What a time is divided by, and the unit."""
    return (1.0, "µs") if microseconds < 1000 else (1e3, "ms") if microseconds < 1e6 else (1e6, "s")


def _time(row: Row, name: str) -> str:
    """Median and quartiles: "1.80 ms (1.73-1.94)"."""
    unit = "ms" if f"{name}_ms" in row else "us"
    if f"{name}_{unit}" not in row:
        return MISSING
    scale = 1e3 if unit == "ms" else 1.0
    divisor, word = _seconds(row[f"{name}_{unit}"] * scale)
    low, _, high = (number(q * scale / divisor) for q in row[f"{name}_quartiles_{unit}"])
    return f"{number(row[f'{name}_{unit}'] * scale / divisor)} {word} ({low}-{high})"


def _bound(row: Row, name: str = "bound") -> str:
    value = row.get(f"{name}_us", row.get(f"{name}_ms", 0) * 1e3)
    if not value:
        return MISSING
    divisor, word = _seconds(value)
    return f"{number(value / divisor)} {word}"


def _ratio(row: Row, key: str) -> str:
    return f"{row[key]:.2f}" if key in row else MISSING


# Tables ---------------------------------------------------------------------------------------------------------------


def _product(row: Row) -> dict[str, Any]:
    return {
        "H": row["hidden"],
        "block": row["block"],
        "type": row["dtype"],
        "gate rank": row.get("gate_rank") or "full",
        "rows": row["rows"],
        "sparsity": row["sparsity"],
        "blocks read": f"{row['share_read']:.1%}",
        "weights in turn": row.get("copies", 1),
        "dense": _time(row, "dense"),
        "bound of dense": _bound(row, "dense_bound"),
        "dense, columns sharded": _time(row, "dense_sharded"),
        "dense, float32": _time(row, "dense_float32"),
        "dense, NumPy's BLAS": _time(row, "dense_blas"),
        "product": _time(row, "product"),
        "bound of the product": _bound(row),
        "layer": _time(row, "layer"),
        "bound of the layer": _bound(row, "layer_bound"),
        "speed-up of the product": _ratio(row, "speedup_product"),
        "of the layer": _ratio(row, "speedup_layer"),
        "product over dense, float32": _ratio(row, "speedup_product_over_dense_float32"),
        "layer over dense, float32": _ratio(row, "speedup_layer_over_dense_float32"),
        "product over BLAS": _ratio(row, "speedup_product_over_dense_blas"),
        "layer over BLAS": _ratio(row, "speedup_layer_over_dense_blas"),
    }


def _batched(row: Row) -> dict[str, Any]:
    return {
        "rows": row["rows"],
        "H": row["hidden"],
        "block": row["block"],
        "type": row["dtype"],
        "sparsity": row.get("sparsity", 0.5),
        "dense": _time(row, "dense"),
        "block-sparse": _time(row, "sparse"),
        "bound": _bound(row),
        "block-sparse / dense": _ratio(row, "sparse_over_dense"),
    }


def _train_step(row: Row) -> dict[str, Any]:
    return {
        "preset": f"`{row['preset']}`",
        "H": row.get("hidden", MISSING),
        "block": row.get("block", MISSING),
        # Of the run, whatever the preset has by now.
        "batch": f"{row['rows']} x {row['tokens_per_second'] * row['dynamic_ms'] / 1e3 / row['rows']:.0f}",
        "type": row.get("dtype", "float32"),
        "sparsity": row["sparsity"],
        "dense": _time(row, "dense"),
        "bound of dense": _bound(row, "dense_bound"),
        "dynamic": _time(row, "dynamic"),
        "bound of dynamic": _bound(row),
        "dynamic / dense": _ratio(row, "dynamic_over_dense"),
        "PyTorch": _time(row, "pytorch"),
        "dynamic / PyTorch": _ratio(row, "dynamic_over_pytorch"),
    }


def _model_decode(row: Row) -> dict[str, Any]:
    others = {
        column: value
        for name, title in BASELINES.items()
        for column, value in ((title, _time(row, name)), (f"over {title}", _ratio(row, f"speedup_over_{name}")))
    }
    return {
        "model": f"{row['cell'].upper()} {row['layers']} x {row['hidden']}, {row['vocab']:,} words",
        "block": row["block"],
        "type": row["dtype"],
        "gate rank": "none: norms" if row.get("gate_source") == "norm" else row["gate_rank"] or "full",
        "batch": row["batch"],
        "sparsity": row["sparsity"],
        "blocks read": f"{row['share_read']:.1%}",
        "dense": _time(row, "dense"),
        "bound of dense": _bound(row, "dense_bound"),
        "dynamic": _time(row, "dynamic"),
        "bound of dynamic": _bound(row),
        "tokens per second": number(row["dynamic_tokens_per_second"]),
        "speed-up over dense": _ratio(row, "speedup_over_dense"),
    } | others


def _word_profile(row: Row) -> dict[str, Any]:
    parts = {name: row[f"{name}_us"] for name in ("scores", "choice", "product", "softmax", "rest")}
    return {
        "model": f"{row['cell'].upper()} {row['layers']} x {row['hidden']}",
        "gate rank": row["gate_rank"] or "full",
        "sparsity": row["sparsity"],
        "a word": _time(row, "word"),
        "with a trace": _bound(row, "traced"),
    } | {name: f"{number(value)} µs ({value / row['traced_us']:.1%})" for name, value in parts.items()}


COLUMNS = {
    "decode": _product,
    "batched": _batched,
    "train_step": _train_step,
    "model_decode": _model_decode,
    "word_profile": _word_profile,
}


HEADLINES: dict[str, dict[str, tuple[Any, ...]]] = {
    "decode": {"rows": (1,), "dtype": ("float32",), "hidden": (1536, 4096)},
    "model_decode": {"cell": ("lstm",), "batch": (1,), "dtype": ("float32",), "hidden": (1536, 4096)},
    "batched": {"sparsity": (0.5,), "hidden": (1536,)},
    "train_step": {"sparsity": (0.5,)},
    "word_profile": {},
}
"""Of each kind, and of CPUs, what is on the page; all else is in its CSV file. GPUs have a table of their own."""


def _section(runs: list[Run], kind: str, docs_dir: Path) -> str:
    """A table of the headline cases of a kind, and a reference to the file with all of them, which is written here."""
    every = [(run, row) for run in runs for row in run.of(kind)]
    path = docs_dir / f"performance_{kind}.csv"
    path.unlink(missing_ok=True)
    if not every:
        return "Nothing has been measured yet."
    lines = [{"hardware": run.hardware, **row, "raw_lines": run.name} for run, row in every]
    shown = [{key: value for key, value in line.items() if key != "benchmark"} for line in lines]
    write_csv(path, list(dict.fromkeys(key for line in shown for key in line)), shown)
    wanted = HEADLINES[kind]
    chosen = [
        {"hardware": run.hardware} | COLUMNS[kind](row)
        for run, row in every
        if run.environment["platform"] == "cpu" and all(row.get(key) in values for key, values in wanted.items())
    ]
    text = table(list(chosen[0]), [list(line.values()) for line in chosen]) if chosen else []
    text += ["", f"All {len(every)} cases: [{path.name}]({path.name})."]
    text += [f"- {row['reason']}." for run in runs if run.of(kind) for row in run.of("left_out")]
    return "\n".join(text).strip()


def _raw(run: Run) -> str:
    return f"[{run.name}](../benchmarks/results/{run.name})"


def _what_ran(runs: list[Run]) -> str:
    """What was measured on which hardware, and what has only been compiled."""
    counted: dict[tuple[str, ...], Counter[str]] = {}
    for run in runs:
        found = run.environment
        versions = f"jax {found['jax']}, Python {found['python']}"
        if "torch" in found and any("pytorch_us" in row or "pytorch_ms" in row for row in run.rows):
            versions += f", PyTorch {found['torch']}"
        revision = f"`{found['revision'][:8]}`{' with changes' * found.get('modified', False)}"
        cases = counted.setdefault((run.hardware, versions, revision, _raw(run)), Counter())
        cases.update({kind: len(run.of(kind)) for kind in KINDS if run.of(kind)})
    lines = [
        [hardware, versions, ", ".join(f"{number} {kind}" for kind, number in cases.items()), revision, raw]
        for (hardware, versions, revision, raw), cases in counted.items()
    ]
    text = table(["hardware", "versions", "cases", "revision", "raw lines, with their commands"], lines)
    platforms = {run.environment["platform"] for run in runs}
    compiled = [
        ("gpu", "NVIDIA GPU", "`triton`", "an H200 (sm_90a; `tests/test_triton.py`)"),
        ("tpu", "TPU", "`mosaic_tpu`", "v5e, v5p, v6e and TPU7x (`tests/test_mosaic_tpu.py`)"),
    ]
    for platform, name, kernels, chips in compiled:
        if platform in platforms:
            text += ["", f"The {kernels} kernels have run on {name}s: see the lines above."]
        else:
            text += [
                "",
                f"**No {name} has run anything on this page.** The {kernels} kernels pass their tests in interpret "
                f"mode and are compiled ahead of time for {chips}; how fast they are is not known.",
            ]
    return "\n".join(text)


def _at_a_glance(runs: list[Run]) -> str:
    """Of a GPU, what counts most: one row of a product, a word of a whole model and a training step, against dense."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for run in runs:
        if run.environment["platform"] != "gpu":
            continue
        for row in run.rows:
            kind, ran = row["benchmark"], f"{run.environment['device']}, `{run.environment['revision'][:7]}`"
            where = [row.get("dtype"), row.get("sparsity")]
            if kind == "decode" and row["rows"] == 1:
                for name, words in (("product", "product, gates given"), ("layer", "layer, from the input on")):
                    ratio = f"{row[f'speedup_{name}']:.2f}x"
                    cells = [f"{words}, H {row['hidden']}", *where, _time(row, name), _time(row, "dense"), ratio, ran]
                    found[name, row["hidden"], *where] = cells
            elif kind == "model_decode" and row["batch"] == 1:
                what = f"token of an {row['cell'].upper()} of {row['layers']} x {row['hidden']}"
                cells = [
                    what,
                    *where,
                    _time(row, "dynamic"),
                    _time(row, "dense"),
                    f"{row['speedup_over_dense']:.2f}x",
                    ran,
                ]
                found[kind, what, *where] = cells
            elif kind == "train_step":
                ratio = f"{1 / row['dynamic_over_dense']:.2f}x"
                cells = [f"step of `{row['preset']}`", *where, _time(row, "dynamic"), _time(row, "dense"), ratio, ran]
                found[kind, row["preset"], *where] = cells
    if not found:
        return "No GPU has run anything yet."
    header = ["what", "type", "sparsity", "dynamic", "dense", "speed-up", "device and revision"]
    return "\n".join(table(header, list(found.values())))


# Plots ----------------------------------------------------------------------------------------------------------------


def _plot(path: Path, runs: list[Run], kind: str, ratios: dict[str, str]) -> str:
    """Speed-up against sparsity for one row, a panel for each hardware, cell and type; a reference to the picture.

    Args:
        path: where the SVG goes; an old one is removed if there is nothing to show.
        runs: all of them; of two equal cases the later one counts.
        kind: the cases.
        ratios: {key of a ratio: how its lines are labelled}.
    """
    panels: dict[str, dict[tuple[str, str], dict[float, float]]] = {}
    for run in runs:
        for row in run.of(kind):
            if row.get("rows", row.get("batch")) != 1:
                continue
            cell = f"{row['cell'].upper()}, " if "cell" in row else ""
            panel = panels.setdefault(f"{run.hardware}\n{cell}{row['dtype']}, batch 1", {})
            for key, label in ratios.items():
                rank = f", gate rank {row['gate_rank']}" if row.get("gate_rank") else ""
                rank = ", norms" if row.get("gate_source") == "norm" else rank
                series = panel.setdefault((f"H {row['hidden']}{rank}", label), {})
                series[row["sparsity"]] = row[key]
    if not panels:
        path.unlink(missing_ok=True)
        return ""
    _draw(path, panels, list(ratios.values()))
    return f"![Speed-up against sparsity]({path.name})"


def _draw(path: Path, found: dict[str, dict[tuple[str, str], dict[float, float]]], labels: list[str]) -> None:
    # Here, since tables need no matplotlib.
    from benchmarks.report.plots import panels

    sizes = sorted(
        {size for panel in found.values() for size, _ in panel}, key=lambda s: (int(s.split()[1].strip(",")), s)
    )
    with panels(path, len(found)) as axes:
        for axis, (title, panel) in zip(axes, found.items(), strict=True):
            measured = sorted({s for series in panel.values() for s in series})
            ideal = [measured[0] + (measured[-1] - measured[0]) * i / 50 for i in range(51)]
            axis.plot(ideal, [1 / (1 - s) for s in ideal], color="0.6", linestyle=":", label="1 / density")
            axis.axhline(1, color="0.8", linewidth=0.8, zorder=0)
            for (size, label), series in panel.items():
                style = ("-o", "--s")[labels.index(label)]
                points = sorted(series.items())
                axis.plot(*zip(*points, strict=True), style, color=f"C{sizes.index(size)}", label=f"{label}, {size}")
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter("{x:g}")
            axis.set_xticks(measured)
            axis.set_title(title, fontsize="small")
            axis.set_xlabel("sparsity")
            axis.set_ylabel("speed-up over dense")
            axis.legend(fontsize="x-small", frameon=False)


def write(results_dir: Path, docs_dir: Path) -> None:
    """Writes performance.md and its plots.

    Args:
        results_dir: folder of the raw files, *.jsonl.
        docs_dir: folder of the page, and of a CSV file for every kind of case.
    """
    runs = read_runs(results_dir)
    parts = {kind: _section(runs, kind, docs_dir) for kind in KINDS} | {
        "what_ran": _what_ran(runs),
        "at_a_glance": _at_a_glance(runs),
    }
    products = {"speedup_product": "product", "speedup_layer": "layer"}
    plots = {"decode": products, "model_decode": {"speedup_over_dense": "model"}}
    for kind, ratios in plots.items():
        picture = _plot(docs_dir / f"performance_{kind}.svg", runs, kind, ratios)
        parts[kind] = f"{picture}\n\n{parts[kind]}" if picture else parts[kind]
    text = (HERE / "performance_template.md").read_text()
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}\n", f"{part}\n")
    (docs_dir / "performance.md").write_text(text)
