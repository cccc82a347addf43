"""docs/tpu_pod.md: tables and a plot of what is compiled for TPU slices, put in place of the names in braces of
tpu_pod_template.md. Of two equal cases the later one counts.
"""

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.pod.tpus import CHIPS, SOURCES, chip_of
from benchmarks.report.tables import MISSING, number, table

HERE = Path(__file__).resolve().parent
Row = dict[str, Any]
KINDS = {
    "all-reduce": "all-reduce",
    "all-gather": "all-gather",
    "reduce-scatter": "reduce-scatter",
    "collective-permute": "permute",
    "all-to-all": "all-to-all",
}


class Case(NamedTuple):
    """One compiled step, and the environment line of its run."""

    row: Row
    environment: Row

    @property
    def key(self) -> tuple[Any, ...]:
        """What is compiled."""
        return tuple(self.row[name] for name in ("preset", "topology", "model", "shard_optimizer", "rows", "vocab"))

    @property
    def plain(self) -> bool:
        """All chips along data."""
        return self.row["model"] == 1 and not self.row["shard_optimizer"]

    @property
    def step_ms(self) -> float:
        """The bound of a step: arithmetic and memory side by side, then the interconnect."""
        return max(self.row["compute_ms"], self.row["memory_ms"]) + self.row["interconnect_ms"]

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of the whole slice."""
        return self.row["batch"] * self.row["sequence_length"] / self.step_ms * 1e3

    @property
    def share_of_memory(self) -> float:
        """The share of a chip's memory that the step takes."""
        return self.row["memory_bytes"] / chip_of(self.row["topology"]).hbm

    @property
    def mesh(self) -> str:
        """The mesh in words."""
        words = f"data {self.row['data']}"
        words += f", model {self.row['model']}" if self.row["model"] > 1 else ""
        return words + ", fully sharded" * self.row["shard_optimizer"]


def read_cases(path: Path) -> list[Case]:
    """All cases of a raw file, sorted."""
    found: dict[tuple[Any, ...], Case] = {}
    environment: Row = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        if row["benchmark"] == "environment":
            environment = row
        elif row["benchmark"] == "pod_compile":
            case = Case(row, environment)
            found[case.key] = case
    return [found[key] for key in sorted(found)]


# In words -------------------------------------------------------------------------------------------------------------


def _bytes(count: float) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{number(count / limit)} {unit}"
    return f"{count:.0f} B"


def _flops(count: float) -> str:
    return f"{number(count / 1e12)} TFLOP" if count >= 1e12 else f"{number(count / 1e9)} GFLOP"


def _table(rows: list[Row]) -> str:
    if not rows:
        return "Nothing has been compiled yet."
    return "\n".join(table(list(rows[0]), [list(row.values()) for row in rows]))


def _head(case: Case) -> Row:
    return {"preset": f"`{case.row['preset']}`", "slice": case.row["topology"]}


# Tables ---------------------------------------------------------------------------------------------------------------


def _chips() -> str:
    return _table(
        [
            {
                "chip": f"[{name}]({SOURCES[name]})",
                "bfloat16": f"{chip.flops / 1e12:.0f} TFLOP/s",
                "HBM": f"{chip.hbm / 2**30:.0f} GiB",
                "bandwidth of HBM": f"{chip.hbm_bandwidth / 1e9:,.0f} GB/s",
                "interconnect, each way": f"{chip.interconnect / 1e9:.0f} GB/s",
            }
            for name, chip in CHIPS.items()
        ]
    )


def _memory(case: Case) -> Row:
    row = case.row
    return _head(case) | {
        "mesh": case.mesh,
        "batch": f"{row['batch']:,}",
        "parameters": _bytes(row["parameter_bytes"]),
        "optimiser": _bytes(row["optimizer_bytes"]),
        "temporaries": _bytes(row["temporary_bytes"]),
        "activations among them": _bytes(row["activation_bytes"]),
        "code": _bytes(row["code_bytes"]),
        "all, of HBM": f"{_bytes(row['memory_bytes'])}, {case.share_of_memory:.1%}",
        "VMEM of the largest kernel": _bytes(row["kernel_vmem_used"]),
        "its limit": _bytes(row["kernel_vmem_limit"]),
    }


def _work(case: Case) -> Row:
    row = case.row
    sent = {
        f"{title}: number, sent": f"{row['collectives'][kind]['count']}, {_bytes(row['collectives'][kind]['sent'])}"
        if kind in row["collectives"]
        else MISSING
        for kind, title in KINDS.items()
    }
    return (
        _head(case)
        | {
            "mesh": case.mesh,
            "rows": row["rows"],
            "FLOPs": _flops(row["flops"]),
            "in kernels": f"{row['kernel_flops'] / row['flops']:.0%}",
            "the compiler's count": _flops(row["xla_flops"]),
            "kernel calls": row["kernel_calls"],
            "HBM traffic": _bytes(row["hbm_traffic"]),
        }
        | sent
    )


def _times(case: Case) -> Row:
    row = case.row
    return _head(case) | {
        "mesh": case.mesh,
        "rows": row["rows"],
        "batch": f"{row['batch']:,}",
        "compute": f"{number(row['compute_ms'])} ms",
        "memory": f"{number(row['memory_ms'])} ms",
        "interconnect": f"{number(row['interconnect_ms'])} ms",
        "step": f"{number(case.step_ms)} ms",
        "tokens a second": f"{number(case.tokens_per_second / 1e6)} M",
        "of the chips' arithmetic": f"{row['compute_ms'] / case.step_ms:.0%}",
        "of HBM": f"{case.share_of_memory:.0%}",
    }


def _paying(cases: list[Case]) -> str:
    """What more chips give at the same batch: from each case to the one with the next smaller number of rows."""
    series: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        series.setdefault((case.row["preset"], case.row["topology"]), []).append(case)
    rows = []
    for line in series.values():
        line.sort(key=lambda case: -case.row["rows"])
        for many, few in itertools.pairwise(line):
            chips, gain = many.row["rows"] / few.row["rows"], many.step_ms / few.step_ms
            rows.append(
                _head(few)
                | {
                    "rows a chip": f"{many.row['rows']} to {few.row['rows']}",
                    "chips for the same batch": f"x {chips:g}",
                    "step": f"{number(many.step_ms)} to {number(few.step_ms)} ms, x {gain:.2f}",
                    "cost of a token": f"x {chips / gain:.2f}",
                }
            )
    return _table(rows)


def _other_meshes(cases: list[Case]) -> list[Case]:
    """The cases with a mesh that is not plain, each after the plain one of the same batch."""
    others = [case for case in cases if not case.plain]
    batches = {(case.row["preset"], case.row["topology"], case.row["batch"]) for case in others}
    chosen = [case for case in cases if (case.row["preset"], case.row["topology"], case.row["batch"]) in batches]
    return sorted(chosen, key=lambda case: (case.row["preset"], case.row["topology"], not case.plain, case.key))


def _runs(cases: list[Case], name: str) -> str:
    runs: dict[str, Row] = {json.dumps(case.environment, sort_keys=True): case.environment for case in cases}
    rows = [
        {
            "command": f"`{found['command'].partition(' --output')[0]}`",
            "versions": f"jax {found['jax']}, libtpu {found.get('libtpu', MISSING)}, Python {found['python']}",
            "on": f"{found['processor']}, {found['cores']} cores",
            "revision": f"`{found['revision'][:8]}`",
        }
        for found in sorted(runs.values(), key=lambda found: found["command"])
    ]
    return f"{_table(rows)}\n\nRaw lines: [{name}](../benchmarks/results/{name})." if rows else _table(rows)


# Plot -----------------------------------------------------------------------------------------------------------------


def _plot(path: Path, cases: list[Case]) -> str:
    """Times of a step against rows a chip, a panel for each preset and slice; a reference to the picture."""
    series: dict[str, list[Case]] = {}
    for case in cases:
        series.setdefault(f"{case.row['preset']}, {case.row['topology']}", []).append(case)
    if not series:
        path.unlink(missing_ok=True)
        return ""
    # Imported here because the tables need no matplotlib.
    from benchmarks.report.plots import GREY, legend, panels

    times = {
        "compute": {"color": "C0", "marker": "o"},
        "memory": {"color": "C1", "marker": "s"},
        "interconnect": {"color": "C2", "marker": "^"},
    }
    ticks = sorted({case.row["rows"] for case in cases})
    with panels(path, len(series)) as axes:
        for axis, (title, line) in zip(axes, series.items(), strict=True):
            line.sort(key=lambda case: case.row["rows"])
            rows = [case.row["rows"] for case in line]
            for name, look in times.items():
                axis.plot(rows, [case.row[f"{name}_ms"] for case in line], **look, markersize=4)
            axis.plot(rows, [case.step_ms for case in line], "--", color=GREY)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(ticks, [str(r) for r in ticks])
            axis.minorticks_off()
            axis.yaxis.set_major_formatter("{x:g}")
            axis.set_title(title, fontsize="small")
            axis.set_xlabel("rows a chip")
            axis.set_ylabel("ms, at least")
        legend(axes[0].figure, {**times, "step": {"linestyle": "--"}})
    return f"![Times of a step against rows a chip]({path.name})"


def write(results_dir: Path, docs_dir: Path) -> None:
    """Writes tpu_pod.md and its plot.

    Args:
        results_dir: folder of the raw file, tpu_pod_compile.jsonl.
        docs_dir: folder of the page.
    """
    name = "tpu_pod_compile.jsonl"
    cases = read_cases(results_dir / name)
    plain = [case for case in cases if case.plain]
    first = [case for case in plain if case.row["rows"] == 8]
    parts = {
        "chips": _chips(),
        "memory": _table([_memory(case) for case in first]),
        "work": _table([_work(case) for case in first]),
        "plot": _plot(docs_dir / "tpu_pod.svg", plain),
        "times": _table([_times(case) for case in plain]),
        "paying": _paying(plain),
        "other_meshes": _table([_times(case) for case in _other_meshes(cases)]),
        "other_work": _table([_work(case) for case in _other_meshes(cases)]),
        "runs": _runs(cases, name),
    }
    text = (HERE / "tpu_pod_template.md").read_text()
    for part, content in parts.items():
        text = text.replace(f"{{{part}}}\n", f"{content}\n")
    (docs_dir / "tpu_pod.md").write_text(text)
