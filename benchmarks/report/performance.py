"""docs/performance.md: tables and plots of times, put in place of the names in braces of performance_template.md.

The page has the cases that say most, a CSV file beside it has all.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from benchmarks.report.performance_columns import COLUMNS, time
from benchmarks.report.runs import KINDS, Run, read_runs
from benchmarks.report.tables import said_once, table, write_csv

HEADLINES: dict[str, dict[str, tuple[Any, ...]]] = {
    "decode": {"rows": (1,), "dtype": ("float32",), "hidden": (1536, 4096)},
    "model_decode": {"cell": ("lstm",), "batch": (1,), "dtype": ("float32",), "hidden": (1536, 4096)},
    "batched": {"sparsity": (0.5,), "hidden": (1536,)},
    "train_step": {"sparsity": (0.5,)},
    "token_profile": {},
}
"""The cases on CPUs that the page shows, by kind. Its CSV file has all cases; GPUs have a table of their own."""


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
    text = said_once(chosen) if chosen else []
    text += ["", f"All {len(every)} cases: [{path.name}]({path.name})."]
    text += [f"- {row['reason']}." for run in runs if run.of(kind) for row in run.of("left_out")]
    return "\n".join(text).strip()


def _raw(run: Run) -> str:
    return f"[{run.name}](../benchmarks/results/{run.name})"


def _what_ran(runs: list[Run]) -> str:
    """What was measured on which hardware, and what has only been compiled."""
    counted: dict[tuple[str, str], Counter[str]] = {}
    versions, revisions = defaultdict(list), defaultdict(list)
    for run in runs:
        found, key = run.environment, (run.hardware, _raw(run))
        counted.setdefault(key, Counter()).update({kind: len(run.of(kind)) for kind in KINDS if run.of(kind)})
        versions[key] += [f"jax {found['jax']}, Python {found['python']}"]
        if "torch" in found and any("pytorch_us" in row or "pytorch_ms" in row for row in run.rows):
            versions[key] += [f"PyTorch {found['torch']}"]
        revisions[key] += [f"`{found['revision'][:8]}`{' with changes' * found.get('modified', False)}"]
    lines = [
        [
            key[0],
            ", ".join(dict.fromkeys(versions[key])),
            ", ".join(f"{number} {kind}" for kind, number in cases.items()),
            ", ".join(dict.fromkeys(revisions[key])),
            key[1],
        ]
        for key, cases in counted.items()
    ]
    text = table(["hardware", "versions", "cases", "revisions", "raw lines, with their commands"], lines)
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
    """What counts most on a GPU, against dense: one row of a product, a token of a whole model and a training step."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for run in runs:
        if run.environment["platform"] != "gpu":
            continue
        for row in run.rows:
            kind, ran = row["benchmark"], f"{run.environment['device']}, `{run.environment['revision'][:7]}`"
            where = [row.get("dtype"), row.get("sparsity")]
            if kind == "decode" and row["rows"] == 1:
                cells = [f"layer, H {row['hidden']}", *where, time(row, "layer"), time(row, "dense")]
                found["layer", row["hidden"], *where] = [*cells, f"{row['speedup_layer']:.2f}x", ran]
            elif kind == "model_decode" and row["batch"] == 1:
                what = f"token of an {row['cell'].upper()} of {row['layers']} x {row['hidden']}"
                what += ", no gate: norms" * (row.get("gate_source") == "norm")
                cells = [
                    what,
                    *where,
                    time(row, "dynamic"),
                    time(row, "dense"),
                    f"{row['speedup_over_dense']:.2f}x",
                    ran,
                ]
                found[kind, what, *where] = cells
            elif kind == "train_step":
                ratio = f"{1 / row['dynamic_over_dense']:.2f}x"
                cells = [f"step of `{row['preset']}`", *where, time(row, "dynamic"), time(row, "dense"), ratio, ran]
                found[kind, row["preset"], *where] = cells
    if not found:
        return "No GPU has run anything yet."
    header = ["what", "type", "sparsity", "dynamic", "dense", "speed-up", "device and revision"]
    return "\n".join(table(header, list(found.values())))


def write(results_dir: Path, docs_dir: Path) -> None:
    """Writes performance.md and its plots.

    Args:
        results_dir: folder of the raw files, *.jsonl.
        docs_dir: folder of the page, and of a CSV file for every kind of case.
    """
    # Imported here because the tables need no matplotlib.
    from benchmarks.report.performance_plots import speedups

    runs = read_runs(results_dir)
    parts = {kind: _section(runs, kind, docs_dir) for kind in KINDS} | {
        "what_ran": _what_ran(runs),
        "at_a_glance": _at_a_glance(runs),
    }
    products = {"speedup_product": "product", "speedup_layer": "layer"}
    plots = {"decode": products, "model_decode": {"speedup_over_dense": "model"}}
    for kind, ratios in plots.items():
        picture = speedups(docs_dir / f"performance_{kind}.svg", runs, kind, ratios)
        parts[kind] = f"{picture}\n\n{parts[kind]}" if picture else parts[kind]
    text = Path(__file__).with_name("performance_template.md").read_text()
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}\n", f"{part}\n")
    (docs_dir / "performance.md").write_text(text)
