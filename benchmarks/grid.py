"""The cells of the comparison: every training run of benchmarks/reproduce.py, and what sets it apart from its preset.

A cell is a preset, a variant (method and sparsity) and a seed. Every method has the same number of steps. At the size
for CPU cores learning rate and dropout are chosen for each method by the same small sweep, on validation perplexity.
"""

import dataclasses
import json
import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bwds import PRESETS, equal_cost_dense
from bwds.config import Config

SMALL = {"data.batch_size": 16, "train.steps": 1600, "train.eval_every": 400, "train.checkpoint_every": 400}
"""Nearly an epoch: minutes on one CPU core. In batches of 64 it would be over before anything is learned."""
PAPER = {"train.log_every": 100}
"""At the paper's size only every hundredth step is logged: the logs are kept in the repository."""
SIZES: dict[str, dict[str, Any]] = {
    "ptb-lstm-small": SMALL,
    "ptb-qrnn-small": SMALL,
    "ptb-lstm": PAPER,
    "ptb-qrnn": PAPER,
}
"""Presets of the grid, with the options that all their cells change: two for CPU cores, two for a GPU."""

SWEEP: dict[str, dict[str, tuple[float, ...]]] = {
    "ptb-lstm-small": {"optim.learning_rate": (3e-3, 1e-2, 3e-2), "model.dropout": (0.0, 0.1, 0.3)},
    "ptb-qrnn-small": {"optim.learning_rate": (1e-3, 3e-3, 1e-2, 3e-2), "model.dropout": (0.0, 0.1, 0.3)},
}
"""Values tried for each method, one option at a time, at the size for CPU cores: the preset's and those beside it."""
TUNED: dict[tuple[str, str], dict[str, float]] = {
    ("ptb-lstm-small", "dense"): {"model.dropout": 0.0},
    ("ptb-lstm-small", "magnitude"): {"model.dropout": 0.0},
    ("ptb-lstm-small", "static-block"): {"model.dropout": 0.3},
    ("ptb-lstm-small", "dynamic"): {"model.dropout": 0.0},
    ("ptb-qrnn-small", "dense"): {"model.dropout": 0.0},
    ("ptb-qrnn-small", "magnitude"): {"optim.learning_rate": 1e-2},
    ("ptb-qrnn-small", "static-block"): {"optim.learning_rate": 1e-2},
    ("ptb-qrnn-small", "dynamic"): {"model.dropout": 0.0},
}
"""How the run of the sweep with the lowest validation perplexity differs from the preset, if it does."""

SPARSITIES = (0.5, 0.75, 0.9)
SEEDS = (0, 1, 2)
SWEPT = ("dense", "magnitude-0.5", "static-block-0.5", "dynamic-0.5")
"""The variant of each method for which its learning rate and dropout are chosen."""
HEADLINE = ("dense", "dense-equal-0.5", "magnitude-0.5", "dynamic-0.5")
"""Variants that are trained with all seeds, at the size for CPU cores the controls and other gates too. The rest has
the first."""
GATE_SOURCES = ("frozen", "bias", "random")
CONTROLS = tuple(f"dynamic-{source}-0.5" for source in GATE_SOURCES)
LONGER = ("dense", "magnitude-0.5", "dynamic-0.5")
"""Variants that are also trained for more steps, at the size for CPU cores."""


def variants(preset: str, *, tuned: bool = True) -> dict[str, dict[str, Any]]:
    """Options of each variant of a preset, by name, with those that were chosen for its method or as the preset has it.

    dense-equal-S has the hidden size with which the dense model costs what dynamic-S does, gate included. static-block
    is not there at 0.9: neither 8 nor 12 blocks a side can be cut into ten groups.
    """
    found: dict[str, dict[str, Any]] = {"dense": {"model.method": "dense"}}
    for s in SPARSITIES:
        dynamic = dataclasses.replace(PRESETS[preset].model, method="dynamic", sparsity=s)
        found[f"dense-equal-{s}"] = {
            "model.method": "dense",
            "model.hidden_size": equal_cost_dense(dynamic).hidden_size,
        }
    found |= {f"magnitude-{s}": {"model.method": "magnitude", "model.sparsity": s} for s in SPARSITIES}
    found["magnitude-block-0.5"] = {
        "model.method": "magnitude",
        "model.sparsity": 0.5,
        "model.magnitude_unit": "block",
    }
    found |= {f"static-block-{s}": {"model.method": "static-block", "model.sparsity": s} for s in SPARSITIES[:2]}
    found |= {f"dynamic-{s}": {"model.method": "dynamic", "model.sparsity": s} for s in SPARSITIES}
    for source in GATE_SOURCES:
        found[f"dynamic-{source}-0.5"] = {
            "model.method": "dynamic",
            "model.sparsity": 0.5,
            "model.gate_source": source,
        }
    if not tuned:
        return found
    return {
        variant: {**options, **TUNED.get((preset, options["model.method"]), {})} for variant, options in found.items()
    }


def untuned(preset: str, variant: str) -> str:
    """Name of the run of a swept variant with the preset's own values: its plain one, unless others were chosen."""
    method = variants(preset)[variant]["model.method"]
    return f"{variant}-untuned" if TUNED.get((preset, method)) else variant


def sweep(preset: str) -> dict[str, dict[str, Any]]:
    """Options of the runs that tell whether another learning rate or dropout suits a method better, by name.

    Each differs in one option from a variant in ``SWEPT`` with the preset's values, which is among them where others
    were chosen. What the sweep is does not depend on its outcome.
    """
    if preset not in SWEEP:
        return {}
    found, made = {}, variants(preset, tuned=False)
    for variant in SWEPT:
        options = made[variant]
        if (name := untuned(preset, variant)) != variant:
            found[name] = options
        for option, values in SWEEP[preset].items():
            section, name = option.split(".")
            own = getattr(getattr(PRESETS[preset], section), name)
            found |= {f"{variant}-{name}-{v}": {**options, option: v} for v in values if v != own}
    return found


def ablations(preset: str) -> dict[str, dict[str, Any]]:
    """Options of the runs in which the dynamic method at half the blocks is made in another way, by name."""
    if SIZES[preset] is not SMALL:
        return {}
    full = PRESETS[preset].model.gate_rank is None
    other = {
        "softplus": {"model.gate_activation": "softplus"},
        "bounded": {"model.gate_normalization": "bounded"},
        "unnormalised": {"model.gate_normalization": "none"},
        "column": {"model.gate_scope": "column"},
        "column-bounded": {"model.gate_scope": "column", "model.gate_normalization": "bounded"},
        "column-softplus": {"model.gate_scope": "column", "model.gate_activation": "softplus"},
        "rank-32" if full else "full-rank": {"model.gate_rank": 32 if full else None},
        "blocks-of-64": {"model.block_size": 64},
        # While nearly all blocks are kept, the mean of linear scores is near zero: no gates have a mean of one then.
        "cubic-softplus": {"train.sparsity_schedule": "cubic", "model.gate_activation": "softplus"},
    }
    options = variants(preset)["dynamic-0.5"]
    found = {f"dynamic-0.5-{name}": {**options, **changed} for name, changed in other.items()}
    # What leaving blocks out costs, and not what gates bring: the same gates, and every block.
    return found | {"dynamic-0.0-softplus": {**options, "model.sparsity": 0.0, "model.gate_activation": "softplus"}}


def longer(preset: str) -> dict[str, dict[str, Any]]:
    """Options of the runs with the preset's own values and four times the steps, nearly four epochs, by name."""
    if SIZES[preset] is not SMALL:
        return {}
    steps, made = 4 * SMALL["train.steps"], variants(preset, tuned=False)
    return {f"{variant}-{steps}-steps": {**made[variant], "train.steps": steps} for variant in LONGER}


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        preset: where its configuration starts from.
        variant: method and sparsity, in one word.
        seed: of parameters and dropout.
        options: what differs from the preset, {"section.option": value}, the seed included.
    """

    preset: str
    variant: str
    seed: int
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Its name, and where its files are below a folder."""
        return f"{self.preset}/{self.variant}/seed{self.seed}"

    def config(self, directory: str | None = None) -> Config:
        """Its configuration; ``directory`` holds the text, or it is downloaded."""
        sections: dict[str, dict[str, Any]] = {"data": {"directory": directory}}
        for name, value in self.options.items():
            section, option = name.split(".")
            sections.setdefault(section, {})[option] = value
        preset = PRESETS[self.preset]
        changed = {name: dataclasses.replace(getattr(preset, name), **options) for name, options in sections.items()}
        return dataclasses.replace(preset, **changed)

    def command(self, workdir: str) -> str:
        """The command of the same run, on one device. --data.directory takes a local copy of the text instead."""
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in self.options.items()]
        return shlex.join(["python", "train.py", self.preset, f"--workdir={workdir}", "--mesh.data=1", *flags])


def cells() -> list[Cell]:
    """All cells, in the order in which they are run: within a preset the sweep, the headline cells, the others."""
    found = []
    for preset, shared in SIZES.items():
        tried, compared, gates, more = sweep(preset), variants(preset), ablations(preset), longer(preset)
        made = {**tried, **compared, **gates, **more}
        runs = [(variant, SEEDS[0]) for variant in tried]
        runs += [(variant, seed) for seed in SEEDS for variant in HEADLINE]
        runs += [(variant, SEEDS[0]) for variant in (*compared, *gates, *more) if variant not in HEADLINE]
        runs += [(variant, seed) for seed in SEEDS[1:] for variant in (*CONTROLS, *gates) if shared is SMALL]
        found += [Cell(preset, v, seed, {**shared, **made[v], "train.seed": seed}) for v, seed in runs]
    return found


def matching(patterns: list[str]) -> list[Cell]:
    """Cells whose name matches any of the patterns, in which * stands for anything.

    Raises:
        ValueError: a pattern matches none.
    """
    everything = cells()
    for pattern in patterns:
        if not any(fnmatchcase(cell.name, pattern) for cell in everything):
            raise ValueError(f"No cell is called {pattern!r}; --list shows all names, and * stands for anything.")
    return [cell for cell in everything if any(fnmatchcase(cell.name, pattern) for pattern in patterns)]


def result_path(cell: Cell, results: Path) -> Path:
    """File of a cell's line."""
    return results / f"{cell.name}.json"


def read_line(cell: Cell, results: Path) -> dict[str, Any] | None:
    """A cell's line, None if there is none.

    Raises:
        ValueError: the line is that of a run with other options, under a name that means something else by now.
    """
    path = result_path(cell, results)
    if not path.exists():
        return None
    line = json.loads(path.read_text())
    if line["options"] != cell.options:
        raise ValueError(
            f"{path} is of a run with the options {line['options']}; the grid now has {cell.options} under this name. "
            "Remove the file, or give the cell another name."
        )
    return line
