"""Compares runs: their curves in one figure, and in one table what they reached, what they cost and how they differ.

    bwds compare RUN RUN ... [--output FILE]

A run that is not finished is shown up to its last step; it has no measured speed of decoding yet.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from bwds import plots
from bwds.checks import require
from bwds.cli import parsed
from bwds.config import Config
from bwds.errors import of_the_system
from bwds.filesystem import place, write_bytes
from bwds.output import say, tell

FORMATS = ("png", "svg")


@dataclass(frozen=True)
class Options:
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders of the runs."""
    output: str = "compare.png"
    """File of the figure, .png or .svg."""


class RunFigures(NamedTuple):
    """The figures of a run that its folder has; None for those that it does not have yet.

    Attributes:
        name: the shortest end of the folder's name that tells the run from the others.
        config: its configuration.
        curve: steps and validation perplexities.
        step: the last step in metrics.jsonl.
        density: realised density of the evaluation with the lowest loss.
        relative_cost: multiply-adds against the dense model of the same size, gate and softmax included.
        tokens_per_second: of training, median.
        decode_tokens_per_second: of decoding at batch 1.
        text_sha256: digest of its text.
    """

    name: str
    config: Config
    curve: list[tuple[int, float]]
    step: int
    density: float
    relative_cost: float
    tokens_per_second: float | None
    decode_tokens_per_second: float | None
    text_sha256: str | None


def main(argv: Sequence[str] | None = None) -> None:
    """The command ``bwds compare``. Raises what ``bwds.cli.run`` answers."""
    compare(parsed(lambda: tyro.cli(Options, args=argv, prog="bwds compare", description=__doc__)))


def compare(options: Options) -> None:
    """Prints the table and draws the curves. Raises ``ValueError`` where a folder holds no run."""
    require(len(options.runs) > 0, "There is no run to compare; give the folders of some.")
    folders = [place(name, "RUN") for name in options.runs]
    path = place(options.output, "--output", "file")
    require(path.suffix[1:] in FORMATS, f"--output is {options.output!r}; its name must end in .png or .svg.")
    runs = [read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]
    say(table(runs))
    known = {found.text_sha256 for found in runs if found.text_sha256}
    if len(known) > 1:
        tell("warning: these runs have different texts; their perplexities do not compare.")
    if not plots.is_available():
        tell('No figure is drawn: matplotlib is missing (pip install -e ".[plots]" in a clone of the repository).')
        return
    figure = plots.file_of(plots.curves({found.name: found.curve for found in runs}), path.suffix[1:])
    try:
        write_bytes(path, figure)
    except OSError as error:
        # Only a warning, because the table is shown.
        tell(f"warning: {of_the_system(error)}\nThere is no figure; --output takes another place.")
        return
    say(f"Written to {path}.")


def short_names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the folders' names that tell all of them apart; numbers if a folder is given twice."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{folder.name} ({i + 1})" for i, folder in enumerate(folders)]


def read_run(workdir: Path, name: str) -> RunFigures:
    """The figures in the folder of a run.

    Raises:
        ValueError: it holds no run, a file is damaged, or there was no evaluation yet.
    """
    from bwds.cost import cost
    from bwds.training.metrics import METRICS_FILE, read_metrics
    from bwds.training.summary import read_summary
    from bwds.training.workdir import read_config

    config = read_config(workdir)
    lines = read_metrics(workdir / METRICS_FILE)
    evaluations = [line for line in lines if line["split"] == "valid"]
    require(
        len(evaluations) > 0,
        f"The run in {str(workdir)!r} has no validation perplexity yet: it is evaluated every "
        f"{config.train.eval_every:,} steps.",
    )
    summary = read_summary(workdir) or {}
    speeds = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second") is not None]
    best = min(evaluations, key=lambda line: line["loss"])
    return RunFigures(
        name=name,
        config=config,
        curve=[(line["step"], line["perplexity"]) for line in evaluations],
        step=max(line["step"] for line in lines),
        density=best["density"],
        relative_cost=cost(config).relative,
        tokens_per_second=statistics.median(speeds) if speeds else None,
        decode_tokens_per_second=summary.get("decode_tokens_per_second"),
        text_sha256=summary.get("text_sha256"),
    )


def table(runs: Sequence[RunFigures]) -> str:
    """Figures of all runs, one line per run, and below them the options in which they differ."""
    rows = [["run", "steps", "validation", "density", "cost", "training", "decoding"]]
    rows += [["", "", "perplexity", "", "of dense", "tokens/s", "tokens/s"]]
    for found in runs:
        total = found.config.train.steps
        steps = f"{found.step:,}" if found.step == total else f"{found.step:,} of {total:,}"
        speeds = [found.tokens_per_second, found.decode_tokens_per_second]
        lowest = min(value for _, value in found.curve)
        figures = [f"{lowest:.2f}", f"{found.density:.4f}", f"{found.relative_cost:.3f}"]
        rows.append([found.name, steps, *figures, *("-" if s is None else f"{s:,.0f}" for s in speeds)])
    lines = _aligned(rows)
    if any(found.config.model.method in ("magnitude", "static-block") for found in runs):
        lines.append("cost of magnitude and static-block is on paper: products with masked weights are dense")
    changed = differences([found.config for found in runs])
    if len(runs) > 1:
        lines.append("")
        if changed:
            lines += _aligned([["option", *(found.name for found in runs)]] + [[o, *values] for o, values in changed])
        else:
            lines.append("No option differs.")
    return "\n".join(lines)


def differences(configs: Sequence[Config]) -> list[tuple[str, list[str]]]:
    """Options in which configurations differ, by their names on the command line, with the value in each.

    The size of the vocabulary and the folder of the text are left out, because they come from the text.
    """
    plain = [dataclasses.asdict(config) for config in configs]
    found = []
    for section, options in plain[0].items():
        for name in options:
            values = [one[section][name] for one in plain]
            known = (section, name) in (("model", "vocab_size"), ("data", "directory"))
            if not known and any(value != values[0] for value in values):
                shown = [
                    f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
                    for value in values
                ]
                found.append((f"--{section}.{name.replace('_', '-')}", shown))
    return found


def _aligned(rows: Sequence[Sequence[Any]]) -> list[str]:
    """Lines of columns, the first one aligned to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
