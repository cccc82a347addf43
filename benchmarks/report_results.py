"""docs/results.md: the comparison of perplexities. The prose is in results_template.md; lines in braces are filled in.

Raw lines are those of benchmarks/reproduce.py, one file a cell; which cells there should be is in benchmarks/grid.py.
"""

import math
from pathlib import Path
from typing import Any

from grid import (
    CONTROLS,
    LONGER,
    SEEDS,
    SIZES,
    SPARSITIES,
    SWEPT,
    ablations,
    cells,
    longer,
    read_line,
    sweep,
    untuned,
    variants,
)
from intervals import Estimate, difference, mean
from tables import MISSING, table

from bwds import PRESETS

HERE = Path(__file__).resolve().parent
Line = dict[str, Any]
Lines = dict[str, list[Line]]
"""Raw lines of each variant of one preset, by seed."""
SERIES = {
    "dense of equal cost": ("dense", *(f"dense-equal-{s}" for s in reversed(SPARSITIES))),
    "magnitude": tuple(f"magnitude-{s}" for s in SPARSITIES),
    "magnitude, whole blocks": ("magnitude-block-0.5",),
    "static-block": tuple(f"static-block-{s}" for s in SPARSITIES[:2]),
    "dynamic": tuple(f"dynamic-{s}" for s in SPARSITIES),
    "controls": CONTROLS,
}
CONTROLS_IN_WORDS = (
    "a projection that is never trained",
    "gates that are the same for every input",
    "gates that are a hash of the input",
)
CLAIMS = [
    ("dynamic at 0.5 is better than dense of the same size", "dynamic-0.5", "dense"),
    *((f"dynamic at {s} is better than dense of equal cost", f"dynamic-{s}", f"dense-equal-{s}") for s in SPARSITIES),
    *((f"dynamic at {s} is better than magnitude pruning", f"dynamic-{s}", f"magnitude-{s}") for s in SPARSITIES),
    ("dynamic at 0.5 is better than pruning of whole blocks", "dynamic-0.5", "magnitude-block-0.5"),
    *((f"dynamic at {s} is better than static blocks", f"dynamic-{s}", f"static-block-{s}") for s in SPARSITIES[:2]),
    *(
        (f"a learned gate is better than {w}", "dynamic-0.5", c)
        for c, w in zip(CONTROLS, CONTROLS_IN_WORDS, strict=True)
    ),
]


def read_lines(results_dir: Path, preset: str) -> Lines:
    """Lines of all cells of a preset that there are; a variant without any has an empty list."""
    found: Lines = {}
    for cell in cells():
        if cell.preset == preset:
            line = read_line(cell, results_dir / "quality")
            found.setdefault(cell.variant, []).extend([] if line is None else [line])
    return found


def finished(lines: list[Line]) -> list[Line]:
    """Those whose training did not fail."""
    return [line for line in lines if "failed" not in line]


def values(lines: list[Line], key: str) -> list[float]:
    """One value of every finished line."""
    return [line[key] for line in finished(lines)]


# In words -------------------------------------------------------------------------------------------------------------


def _estimate(estimate: Estimate, sign: str = "") -> str:
    interval = "" if estimate.half_width is None else f" ± {estimate.half_width:.2f}"
    return f"{estimate.value:{sign}.2f}{interval}"


def verdict(one: list[float], other: list[float]) -> tuple[str, str]:
    """Difference of two variants' mean perplexities, and what it says about the first being the lower one."""
    if not one or not other:
        return MISSING, "not known: no run of both is finished"
    found = difference(one, other)
    word = "lower" if found.value < 0 else "higher"
    if found.half_width is None:
        return _estimate(found, "+"), f"open: {word}, but a side has one seed only"
    if abs(found.value) <= found.half_width:
        return _estimate(found, "+"), f"open: {word}, but the interval contains 0"
    return _estimate(found, "+"), "**holds**" if found.value < 0 else "**does not hold**"


def _claims(lines: Lines) -> list[str]:
    rows = []
    for words, one, other in CLAIMS:
        sides = [values(lines[name], "test_perplexity") for name in (one, other)]
        told, judged = verdict(*sides)
        failures = sum("failed" in line for name in (one, other) for line in lines[name])
        judged += f"; runs that failed are not in it: {failures}" * bool(failures)
        rows.append([words, told, " / ".join(str(len(side)) for side in sides), judged])
    return table(["claim", "difference in test perplexity", "seeds of the one / the other", "verdict"], rows)


def _row(variant: str, lines: list[Line], preset: str) -> list[str]:
    done = finished(lines)
    failed = f", failed: {len(lines) - len(done)}" * (len(done) < len(lines))
    name = f"[{variant}](../benchmarks/results/quality/{preset}/{variant}/)"
    if not done:
        return [name, *[MISSING] * 8, f"0{failed}", *[MISSING] * 2]
    first = done[0]
    counted = first["multiply_adds"]
    return [
        name,
        first["hidden_size"],
        f"{first['parameters']:,}",
        *(f"{counted[part] / 1e6:.3f}" for part in ("gates", "blocks", "softmax")),
        f"{counted['total'] / counted['preset_dense']:.3f}",
        f"{first['relative_cost']:.3f}",
        f"{first['realised_density']:.4f}",
        f"{len(done)}{failed}",
        *(_estimate(mean(values(lines, f"{split}_perplexity"))) for split in ("validation", "test")),
    ]


def _variations(preset: str, lines: Lines, groups: dict[str, list[str]], seeds: tuple[int, ...]) -> list[str]:
    """Table of variants that differ from others in one thing, each group below the one it differs from."""
    rows = []
    for base, others in groups.items():
        group = [name for name in others if lines[name]]
        for name in [base, *group] if group and lines[base] else []:
            done = finished([line for line in lines[name] if line["seed"] in seeds])
            cost = done[0]["multiply_adds"] if done else None
            found = (values(done, "validation_perplexity"), values(done, "test_perplexity"))
            rows.append(
                [
                    f"[{name}](../benchmarks/results/quality/{preset}/{name}/)",
                    len(done),
                    *(_estimate(mean(split)) if split else "failed" for split in found),
                    ", ".join(f"{value:.1f}" for value in found[1]) if len(found[1]) > 1 else MISSING,
                    f"{cost['total'] / cost['preset_dense']:.3f}" if cost else MISSING,
                ]
            )
    header = ["variant", "seeds", "validation", "test", "test, seed by seed", "multiply-adds, of dense"]
    return [*table(header, rows), ""] * bool(rows)


HEADER = [
    "variant",
    "hidden size",
    "parameters",
    "gates, M",
    "blocks, M",
    "softmax, M",
    "of dense",
    "of dense of its hidden size",
    "density",
    "seeds",
    "validation",
    "test",
]


def _where(done: list[Line]) -> str:
    """On what, with what, from which revision, and for how long the runs of a preset ran."""
    hardware = {
        f"{line['processor']}, {line['cores']} core{'s' * (line['cores'] != 1)}"
        if line["platform"] == "cpu"
        else line["device"]
        for line in done
    }
    versions = {f"jax {line['jax']}, Python {line['python']}" for line in done}
    revisions = {
        f"`{revision[:8]}`{' with changes' * line['modified']}"
        for line in done
        for revision in line["revision"].split(", ")
    }
    times = [line["wall_seconds"] for line in done if line["wall_seconds"] is not None]
    hours = f"; {sum(times) / 3600:.1f} hours of training in all" if len(times) == len(done) else ""
    steps = {f"{line['steps']:,} steps" for line in done}
    return f"{'; '.join(', '.join(sorted(part)) for part in (steps, hardware, versions, revisions))}{hours}."


def _section(preset: str, lines: Lines, docs_dir: Path) -> list[str]:
    """Heading, claims, table and plots of a preset."""
    model = PRESETS[preset].model
    text = [
        f"## `{preset}`: {model.cell.upper()}, {model.num_layers} x {model.hidden_size}, blocks of {model.block_size}",
        "",
    ]
    picture = docs_dir / f"results_{preset}.svg"
    done = [line for variant in lines.values() for line in finished(variant)]
    failed = [line for variant in lines.values() for line in variant if "failed" in line]
    if not done and not failed:
        picture.unlink(missing_ok=True)
        return [*text, "No cell has been run.", ""]
    text += [*_claims(lines), ""]
    if done:
        _draw(picture, lines)
        rows = [_row(variant, lines[variant], preset) for variant in variants(preset) if lines[variant]]
        text += [_where(done), "", *table(HEADER, rows), ""]
        text += [f"![Perplexity against cost, {preset}]({picture.name})", ""]
    else:
        picture.unlink(missing_ok=True)
    tried = {variant: [name for name in sweep(preset) if name.startswith(f"{variant}-")] for variant in SWEPT}
    more = {untuned(preset, v): [name for name in longer(preset) if name.startswith(f"{v}-")] for v in LONGER}
    for title, groups, seeds in (
        ("Other learning rates and dropout, first seed", tried, SEEDS[:1]),
        ("Other gates", {"dynamic-0.5": list(ablations(preset))}, SEEDS),
        ("Four times the steps, first seed", more, SEEDS[:1]),
    ):
        if rows := _variations(preset, lines, groups, seeds):
            text += [f"### {title}, `{preset}`", "", *rows]
    text += [f"- `{line['cell']}` failed. {line['failed']}." for line in failed] + [""] * bool(failed)
    commands = [line["command"] for variant in lines.values() for line in variant]
    return [*text, "<details><summary>Commands</summary>", "", "```", *commands, "```", "", "</details>", ""]


def _missing(found: dict[str, Lines]) -> list[str]:
    """Cells without a line, in few words."""
    text = []
    for preset, lines in found.items():
        have = {line["cell"] for variant in lines.values() for line in variant}
        expected = [cell for cell in cells() if cell.preset == preset]
        absent = [f"{cell.variant} (seed {cell.seed})" for cell in expected if cell.name not in have]
        if len(absent) == len(expected):
            text.append(f"- `{preset}`: all {len(expected)} cells.")
        elif absent:
            text.append(f"- `{preset}`: {len(absent)} of {len(expected)}: {', '.join(absent)}.")
    return text or ["None."]


# Plots ----------------------------------------------------------------------------------------------------------------


def _draw(path: Path, lines: Lines) -> None:
    # Here, since tables need no matplotlib.
    from plots import panels

    def relative_cost(line: Line) -> float:
        return line["multiply_adds"]["total"] / line["multiply_adds"]["preset_dense"]

    with panels(path, 1) as (axis,):
        for number, (label, names) in enumerate(SERIES.items()):
            points = []
            for name in names:
                if done := finished(lines[name]):
                    test = mean(values(done, "test_perplexity"))
                    half = math.nan if test.half_width is None else test.half_width
                    points.append((relative_cost(done[0]), test.value, half))
                    # The sparsity; of a control, which one.
                    tag = name.split("-")[1 if label == "controls" else -1].replace("dense", "")
                    axis.annotate(tag, points[-1][:2], (4, 4), textcoords="offset points", fontsize="xx-small")
            if not points:
                continue
            frontier = label == "dense of equal cost"
            line = "" if label == "controls" else "-"
            x, y, half = zip(*(sorted(points) if frontier else points), strict=True)
            color = "0.3" if frontier else f"C{number}"
            axis.errorbar(x, y, half, fmt=f"o{line}", color=color, label=label, capsize=3, linewidth=1)
        axis.set_xlabel("multiply-adds a token, gate and softmax included, of dense", fontsize="small")
        axis.set_ylabel("test perplexity")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="x-small", frameon=False)


def write(results_dir: Path, docs_dir: Path) -> None:
    """Writes results.md and its plots.

    Args:
        results_dir: holds quality/, the folder of the cells' lines.
        docs_dir: folder of the page.
    """
    found = {preset: read_lines(results_dir, preset) for preset in SIZES}
    sections = [line for preset, lines in found.items() for line in _section(preset, lines, docs_dir)]
    text = (HERE / "results_template.md").read_text()
    for name, part in {"presets": sections, "missing": _missing(found)}.items():
        text = text.replace(f"{{{name}}}\n", "\n".join(part).rstrip() + "\n")
    (docs_dir / "results.md").write_text(text)
