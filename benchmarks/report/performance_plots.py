"""The plots of speed-up against sparsity: those of docs/performance.md, and docs/speedup.svg."""

from pathlib import Path

from benchmarks.report.plots import WIDTHS, legend, panels
from benchmarks.report.runs import Row, Run

Curves = dict[tuple[int, str, str], dict[float, float]]
"""What one panel shows: {(width, gate, what was timed): {sparsity: speed-up}}."""
MARKERS = {"gate rank 32": "v", "gate rank 64": "^", "gate rank 128": "o", "full gate": "s", "norms": "D"}
OTHER_RANK = "P"
LOOKS = {"layer": {"linestyle": "--", "markerfacecolor": "white"}}
"""The look of what was timed, where it is not a full line."""


def gate_of(row: Row) -> str:
    """The kind of gate in words."""
    if row.get("gate_source") == "norm":
        return "norms"
    return f"gate rank {row['gate_rank']}" if row.get("gate_rank") else "full gate"


def speedups(path: Path, runs: list[Run], kind: str, ratios: dict[str, str]) -> str:
    """Speed-up against sparsity for one row, a panel for each hardware, cell and type; a reference to the picture.

    Args:
        path: where the SVG goes; an old one is removed if there is nothing to show.
        runs: all of them; of two equal cases the later one counts.
        kind: the cases.
        ratios: {key of a ratio: what was timed}.
    """
    found: dict[str, Curves] = {}
    for run in runs:
        for row in run.of(kind):
            if row.get("rows", row.get("batch")) != 1:
                continue
            cell = f"{row['cell'].upper()}, " if "cell" in row else ""
            panel = found.setdefault(f"{run.hardware}\n{cell}{row['dtype']}, batch 1", {})
            for key, what in ratios.items():
                panel.setdefault((row["hidden"], gate_of(row), what), {})[row["sparsity"]] = row[key]
    if not found:
        path.unlink(missing_ok=True)
        return ""
    draw(path, found, "speed-up over dense")
    return f"![Speed-up against sparsity]({path.name})"


def draw(path: Path, found: dict[str, Curves], ratio: str) -> None:
    """Draws a panel for each title, all on the same scales: colours are widths, markers are gates.

    Args:
        path: where the SVG goes.
        found: {title: what its panel shows}.
        ratio: the speed-up in words.
    """
    curves = dict.fromkeys(curve for panel in found.values() for curve in panel)
    measured = sorted({sparsity for panel in found.values() for curve in panel.values() for sparsity in curve})
    widths, gates = sorted({width for width, _, _ in curves}), {gate for _, gate, _ in curves}
    timed = list(dict.fromkeys(what for _, _, what in curves))
    ideal = [measured[-1] * i / 50 for i in range(51)]
    with panels(path, len(found)) as axes:
        for axis, (title, panel) in zip(axes, found.items(), strict=True):
            axis.plot(ideal, [1 / (1 - s) for s in ideal], color="0.6", linestyle=":")
            axis.axhline(1, color="0.8", linewidth=0.8, zorder=0)
            for (width, gate, what), curve in sorted(panel.items()):
                look = {"color": WIDTHS.get(width, "black"), "marker": MARKERS.get(gate, OTHER_RANK), "markersize": 5}
                points = zip(*sorted(curve.items()), strict=True)
                axis.plot(*points, **look, **LOOKS.get(what, {}), label=f"width {width:,}")
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_formatter("{x:g}")
            axis.set_xticks([0, *measured])
            axis.set_title(title, fontsize="small")
            axis.set_xlabel("sparsity: share of blocks left out")
            axis.set_ylabel(ratio)
        entries = {"1 / density": {"color": "0.6", "linestyle": ":"}}
        entries |= {f"width {width:,}": {"color": WIDTHS.get(width, "black")} for width in widths}
        if len(timed) > 1:
            entries |= {what: LOOKS.get(what, {}) for what in timed}
        order = [*MARKERS, *sorted(gates - MARKERS.keys())]
        entries |= {
            gate: {"marker": MARKERS.get(gate, OTHER_RANK), "linestyle": "none"} for gate in order if gate in gates
        }
        legend(axes[0].figure, entries)
