"""The plots of docs/performance.md: speed-up against sparsity."""

from pathlib import Path

from benchmarks.report.plots import panels
from benchmarks.report.runs import Run


def speedups(path: Path, runs: list[Run], kind: str, ratios: dict[str, str]) -> str:
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
