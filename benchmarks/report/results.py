"""docs/results.md, its plots and docs/results.csv: the comparison of perplexities.

The prose is in results_template.md; names in braces are filled in. Raw lines are those of benchmarks/reproduce.py, one
file a cell; which cells there should be is in benchmarks/quality/grid.py. The page is right with none,
some or all of them.
"""

import json
import math
import statistics
from collections import Counter
from pathlib import Path

from benchmarks.quality.grid import (
    GATES,
    LOW_RANK,
    PAPER,
    PUBLISHED,
    SEEDS,
    SMALL,
    SWEEP,
    SWEPT,
    TWO_DEVICES,
    Cell,
    cells,
    headline,
    sweep,
    variants,
)
from benchmarks.quality.intervals import Estimate, difference, mean
from benchmarks.quality.variant_times import relative_times
from benchmarks.report.frontier import REACHES, frontier
from benchmarks.report.quality_lines import Line, Lines, curve, finished, read_lines, recurrent_share, relative, values
from benchmarks.report.tables import MISSING, table, write_csv
from bwds import PRESETS

TENSORFLOW = {1: 178.6, 2: 142.6, 3: 131.9, 4: 128.4, 5: 127.1, 6: 120.3}
"""Validation perplexity by epoch that TensorFlow's tutorial published for the model of ``PUBLISHED``."""
TENSORFLOW_TEST, ZAREMBA_TEST, NEAR = 116.7, 114.5, 0.03
"""Test perplexities that the tutorial and the authors published; how far dense may be from the first, a fraction."""
OURS = "dynamic-softplus-0.5"
CLAIMS = [
    *((f"dynamic-{gate}-0.5 reaches dense", f"dynamic-{gate}-0.5", "dense", REACHES) for gate in GATES),
    ("dynamic-norm-0.5 reaches dense", "dynamic-norm-0.5", "dense", REACHES),
    (f"{OURS} is better than magnitude-0.5", OURS, "magnitude-0.5", 0.0),
    ("dynamic-norm-0.5, of the same cost, is better than magnitude-0.5", "dynamic-norm-0.5", "magnitude-0.5", 0.0),
    (f"{OURS} is better than dense of equal cost", OURS, "dense-equal-0.5", 0.0),
    (f"{LOW_RANK} reaches dense", LOW_RANK, "dense", REACHES),
    (f"{LOW_RANK}, which costs less, is better than dense-equal-0.5", LOW_RANK, "dense-equal-0.5", 0.0),
    (f"{OURS} is better than gates that are the same for every input", OURS, "dynamic-bias-0.5", 0.0),
]
"""Claims: in words, one variant, the other, and percent above the other that the one must stay below."""
COLUMNS = (
    *("preset", "variant", "seed", "failed", "steps", "best_step", "validation_perplexity", "test_perplexity"),
    *("test_tokens", "hidden_size", "parameters", "realised_density", "relative_cost", "bytes_read"),
    *(f"multiply_adds.{part}" for part in ("gates", "blocks", "softmax", "total", "dense", "preset_dense")),
    *(f"decode.{name}{unit}" for name in ("model", "dense") for unit in ("_us", "_quartiles_us")),
    *("gradient_norm_quantiles", "validation_curve", "train_tokens_per_second", "wall_seconds", "platform", "device"),
    *("processor", "cores", "python", "jax", "revision", "modified", "dataset", "command", "parameters_sha256"),
)
"""Columns of results.csv; a dot leads into a value that is itself a dictionary."""


def _estimate(estimate: Estimate) -> str:
    return f"{estimate.value:.2f}" + ("" if estimate.half_width is None else f" ± {estimate.half_width:.2f}")


def reached(lines: Lines) -> bool:
    """Whether dense reproduces the published figure; nothing else counts before it does."""
    found = values(lines["dense"], "test_perplexity")
    return bool(found) and abs(statistics.fmean(found) / TENSORFLOW_TEST - 1) <= NEAR


def _published(lines: Lines) -> list[str]:
    """Table and sentence about the published figure."""
    found, ours = values(lines["dense"], "test_perplexity"), curve(PUBLISHED, lines["dense"])
    last = PRESETS[PUBLISHED].train.steps // PRESETS[PUBLISHED].train.eval_every
    shown = [f"{ours[epoch]:.1f}" if epoch in ours else MISSING for epoch in (*TENSORFLOW, last)]
    rows = [
        ["TensorFlow", *TENSORFLOW.values(), "flat", TENSORFLOW_TEST],
        ["Zaremba et al. 2014", *[MISSING] * len(shown), ZAREMBA_TEST],
        ["here, seeds: " + str(len(found)), *shown, _estimate(mean(found)) if found else "not run yet"],
    ]
    made = table(["validation perplexity after epoch", *TENSORFLOW, last, "test"], rows)
    if found:
        off = statistics.fmean(found) / TENSORFLOW_TEST - 1
        judged = f"**{'Reached' if reached(lines) else 'Not reached'}**: {off:+.1%} against {TENSORFLOW_TEST}."
    else:
        judged = "**Not reached**: training failed." if lines["dense"] else "**Not run yet.**"
    return [*made, "", judged]


def verdict(one: list[Line], other: list[Line], limit: float, counts: bool) -> str:
    """The difference of two variants' mean test perplexities, in percent of the other's, and what it says.

    A claim holds if the whole interval lies below ``limit``, and does not hold if the whole interval lies above;
    it ``counts`` once the published figure is reached.
    """
    sides = [values(lines, "test_perplexity") for lines in (one, other)]
    failures = len(one) + len(other) - sum(map(len, sides))
    failed = f", failed: {failures}" * bool(failures)
    if not all(sides):
        return f"not known{failed}" if failures else "not run yet"
    percent = 100 / statistics.fmean(sides[1])
    value, half = (math.nan if part is None else part * percent for part in difference(*sides))
    if not counts:
        word = "does not count yet"
    elif value + half < limit:
        word = "**holds**"
    else:
        word = "**does not hold**" if value - half > limit else "open" + ", one seed only" * math.isnan(half)
    interval = "" if math.isnan(half) else f" ± {half:.1f}"
    return f"{word}: {value:+.1f}{interval}% (seeds: {len(sides[0])} / {len(sides[1])}{failed})"


def _name(preset: str) -> str:
    model = PRESETS[preset].model
    return f"{model.cell.upper()}, {model.num_layers} x {model.hidden_size}"


def _claims(found: dict[str, Lines]) -> list[str]:
    """Verdicts on all claims, a column for each preset; the paper's size is there once it has lines."""
    counts, shown = reached(found[PUBLISHED]), [*SMALL, *(p for p in PAPER if any(found[p].values()))]
    rows = [
        [words, *(verdict(found[p][a], found[p][b], limit, counts) if a in found[p] else MISSING for p in shown)]
        for words, a, b, limit in CLAIMS
    ]
    return table(["claim", *map(_name, shown)], rows)


def _row(preset: str, variant: str, lines: list[Line], time: float | None) -> list[str]:
    done = finished(lines)
    seeds = f"{len(done)}" + f", failed: {len(lines) - len(done)}" * (len(done) < len(lines))
    if not done:
        return [variant, seeds, *[MISSING] * 6]
    norms = [line["gradient_norm_quantiles"] for line in done]
    return [
        variant,
        seeds,
        *(_estimate(mean(values(lines, f"{split}_perplexity"))) for split in ("validation", "test")),
        f"{relative(done[0]):.3f}",
        f"{recurrent_share(preset, done[0]):.3f}",
        MISSING if time is None else f"{time:.2f}",
        f"{max(q[1] for q in norms):.3g}" if all(norms) else MISSING,
    ]


def _section(preset: str, lines: Lines, times: dict[str, float], docs_dir: Path) -> list[str]:
    """Heading, table of the headline variants and plots of a preset; one sentence while there are no lines."""
    picture = docs_dir / f"results_{preset}.svg"
    done = {name: finished(lines[name]) for name in variants(preset) if finished(lines[name])}
    if not done:
        picture.unlink(missing_ok=True)
    if not any(lines.values()):
        return [f"{_name(preset)} (`{preset}`{', the size of the paper' * (preset in PAPER)}): not run yet.", ""]
    rows = [_row(preset, name, lines[name], times.get(name)) for name in headline(preset) if lines[name]]
    header = [
        "variant",
        "seeds",
        "validation",
        "test",
        "multiply-adds",
        "recurrent layers",
        "time",
        "gradient norm, 95%",
    ]
    text = [f"## {_name(preset)} (`{preset}`)", "", *(table(header, rows) if rows else []), ""]
    if not done:
        return text
    # Imported here because the tables need no matplotlib.
    from benchmarks.report.results_plots import draw

    costs = {name: relative(made[0]) for name, made in done.items()}
    tests = {name: values(made, "test_perplexity") for name, made in done.items()}
    curves = {name: curve(preset, done[name]) for name in headline(preset) if name in done}
    draw(picture, costs=costs, times={name: times[name] for name in done if name in times}, tests=tests, curves=curves)
    shown = f"Perplexity against multiply-adds,{' against time,' * bool(times)} and by epoch, {preset}"
    return [*text, f"![{shown}]({picture.name})", ""]


def _spread(found: dict[str, Lines]) -> list[str]:
    """How far apart the seeds of ``OURS`` end, and seed 0 on one device and on two."""
    rows = []
    for preset in SMALL:
        tests = values(found[preset][OURS], "test_perplexity")
        two, (one, *_) = values(found[preset][TWO_DEVICES], "test_perplexity"), [*tests, math.nan]
        if tests:
            apart = f"{max(tests) / min(tests) - 1:.1%}"
            shared = [f"{two[0]:.2f}, {two[0] / one - 1:+.1%}"] if two else [MISSING]
            rows.append([_name(preset), len(tests), f"{min(tests):.2f} to {max(tests):.2f}", apart, *shared])
    return table(["", "seeds", "test", "apart", "seed 0 on two devices"], rows) if rows else ["Not run yet."]


def _sweep(found: dict[str, Lines]) -> list[str]:
    """Validation perplexity of each swept method by optimiser and rate, and the best once all are there."""
    rows = []
    for preset in SMALL:
        for variant in SWEPT:
            told = {name: value for name in SWEEP if (value := _after_two_epochs(found[preset], preset, variant, name))}
            if not told:
                continue
            words = [MISSING if n not in told else f"{told[n]:.1f}" if told[n] < math.inf else "failed" for n in SWEEP]
            best = min(told, key=told.__getitem__) if min(told.values()) < math.inf else "none"
            rows.append([_name(preset), variant, *words, best if len(told) == len(SWEEP) else "open"])
    return table(["", "method", *SWEEP, "best"], rows) if rows else ["Not run yet."]


def _after_two_epochs(lines: Lines, preset: str, variant: str, setting: str) -> float | None:
    """Validation perplexity of a swept run, infinite where it failed; None: not run.

    A run to the end begins with the same two epochs if it has the same optimiser and nothing else in it depends on the
    number of steps, as the cosine of AdamW and the pruning schedule do.
    """
    name = f"{variant}-two-epochs-{setting}"
    if own := lines[name]:
        return min(values(own, "validation_perplexity"), default=math.inf)
    wanted = Cell(preset, name, SEEDS[0], sweep(preset)[name]).config()
    for line in finished(lines[variant]):
        config = Cell(preset, variant, line["seed"], line["options"]).config()
        same = config.optim == wanted.optim and config.optim.name == "sgd" and config.model.method != "magnitude"
        if same and line["seed"] == SEEDS[0]:
            return min(perplexity for step, perplexity in line["validation_curve"] if step <= wanted.train.steps)
    return None


def _missing(found: dict[str, Lines]) -> list[str]:
    """How many cells of each preset there are."""
    expected, rows = Counter(cell.preset for cell in cells()), []
    for preset, lines in found.items():
        have = [line for made in lines.values() for line in made]
        done = len(finished(have))
        rows.append([f"`{preset}`", done, len(have) - done, expected[preset] - len(have)])
    return table(["preset", "finished", "failed", "missing"], rows)


def _cut_off(results_dir: Path) -> list[str]:
    """Validation perplexity by epoch of runs that ended before their time (``paper_table.py``), seed by seed."""
    curves = {}
    for path in sorted(results_dir.glob("*.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            if line.get("benchmark") == "curve":
                curves[line["cell"]] = line["validation_curve"]
    if not curves:
        return ["None."]
    last = {cell: len(curve) for cell, curve in curves.items()}
    epochs = sorted({e for e in (1, 5, 10, 14, 20, 25, *last.values()) if e <= max(last.values())})
    rows = [
        [f"`{cell}`", *(f"{curve[e - 1][1]:.1f}" if e <= last[cell] else MISSING for e in epochs)]
        for cell, curve in curves.items()
    ]
    return table(["validation perplexity after epoch", *map(str, epochs)], rows)


def write(results_dir: Path, docs_dir: Path) -> None:
    """Writes results.md, its plots and results.csv, which has every line, from those in the folder quality."""
    found = read_lines(results_dir)
    times = relative_times(results_dir)
    parts = {"published": _published(found[PUBLISHED]), "claims": _claims(found), "frontier": frontier(found)}
    parts["presets"] = [
        line for preset in (*SMALL, *PAPER) for line in _section(preset, found[preset], times.get(preset, {}), docs_dir)
    ]
    parts |= {
        "spread": _spread(found),
        "sweep": _sweep(found),
        "missing": _missing(found),
        "cut_off": _cut_off(results_dir),
    }
    text = Path(__file__).with_name("results_template.md").read_text(encoding="utf-8")
    filled = text.format(**{name: "\n".join(lines).strip() for name, lines in parts.items()})
    (docs_dir / "results.md").write_text(filled, encoding="utf-8")
    every = [line for lines in found.values() for made in lines.values() for line in made]
    write_csv(docs_dir / "results.csv", COLUMNS, every)
