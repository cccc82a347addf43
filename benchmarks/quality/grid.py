"""The cells of the comparison: every training run of benchmarks/reproduce.py, and what sets it apart from its preset.

A cell is a preset, a variant (method, gate and sparsity) and a seed. Every method has the same text, steps and
schedule. At the size for CPU cores, each is given the same sweep of optimiser and learning rate, at two epochs.
"""

import dataclasses
import functools
import math
import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from bwds import PRESETS, equal_cost_dense
from bwds.config import Config

PUBLISHED = "ptb-lstm-zaremba"
"""The dense model of a published figure: no other cell counts before dense reaches that figure."""
SMALL = ("ptb-lstm-small", "ptb-qrnn-small")
PAPER = ("ptb-lstm", "ptb-qrnn")
SIZES = (PUBLISHED, *SMALL, *PAPER)
"""Presets of the grid: sizes for CPU cores, then two for a GPU."""

SPARSITIES = (0.5, 0.75, 0.9)
SEEDS = (0, 1, 2)
MORE_SEEDS = (3, 4)
"""Seeds of the small presets as they stand, softplus at 0.5, beyond ``SEEDS``: how far apart runs end."""
TWO_DEVICES = "dynamic-softplus-0.5-two-devices"
"""The same of seed 0 with the batch on two devices: two CPU devices if ``JAX_NUM_CPU_DEVICES`` is 2."""
GATES: dict[str, dict[str, Any]] = {
    "softplus": {"model.gate_activation": "softplus"},
    "linear": {"model.gate_activation": "linear"},
}
"""Gates of the dynamic method: our softplus, and the paper's linear gate."""
MORE_GATES: dict[str, dict[str, Any]] = {
    "dynamic-softmax-0.5": {"model.gate_activation": "softmax"},
    "dynamic-relu-0.5": {"model.gate_activation": "relu"},
}
"""Variants with other gates of ours. They take the optimiser and rate of softplus, and are trained after all others."""
LOW_RANK = "dynamic-low-rank-0.5"
"""Softplus with a gate of rank 32, of ``ptb-lstm-small`` alone: its full gate costs a quarter of the matrix, and the
other presets for CPU cores have this rank."""

HEADLINE = (
    "dense",
    "dynamic-softplus-0.5",
    "magnitude-0.5",
    "dense-equal-0.5",
    LOW_RANK,
    "dynamic-linear-0.5",
    "dynamic-norm-0.5",
    "dynamic-bias-0.5",
    "static-block-0.5",
)
"""Variants that are trained with all seeds, in the order of what they decide, where the preset has them.

The others are trained with the first.
"""

SWEEP: dict[str, dict[str, Any]] = {
    "sgd-10": {"optim.learning_rate": 10.0},
    "sgd-20": {"optim.learning_rate": 20.0},
    "sgd-40": {"optim.learning_rate": 40.0},
    "adamw-0.002": {"optim.name": "adamw", "optim.learning_rate": 2e-3, "optim.transition_steps": None},
}
"""Optimisers and rates; each method in ``SWEPT`` is trained with all of them for two epochs."""
SWEPT = (
    "dense",
    "dynamic-softplus-0.5",
    "magnitude-0.5",
    "dynamic-linear-0.5",
    "dynamic-norm-0.5",
    "static-block-0.5",
)
"""The swept variant of each method; the method's other variants take the optimiser and rate that suit it best."""
TUNED: dict[tuple[str, str], str] = {("ptb-lstm-small", "dynamic-linear-0.5"): "adamw-0.002"}
"""(preset, swept variant): the name in ``SWEEP`` that the method takes, if it is not the preset's.

It has the lowest validation perplexity within two epochs; once two settings are trained to the end, the lowest there.
"""
RUNNERS_UP: dict[tuple[str, str], str] = {("ptb-lstm-small", "dynamic-linear-0.5"): "sgd-10"}
"""(preset, swept variant): the best by the other optimiser, which is trained to the end too, with the first seed.

Two epochs do not tell which of the two ends lower: the rate of AdamW falls to zero within them, that of SGD is held.
"""

DROPOUT = 0.25
"""Rate for all methods in the second regime; the first regime, the published recipe, has no dropout."""


@functools.cache
def variants(preset: str) -> dict[str, dict[str, Any]]:
    """Options of each variant of a preset, by name, without those that the sweep chooses.

    dense-equal-S is the dense model whose hidden size makes it cost as much as dynamic-softplus-S, gate included.
    dynamic-norm-S has no gate, so it costs less, and it has no rank, also where the preset has one. There is no
    static-block at 0.9, because neither 8 nor 12 blocks a side can be cut into ten groups.
    """
    if preset == PUBLISHED:
        return {"dense": {}}
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
    for gate, options in GATES.items():
        for s in SPARSITIES:
            found[f"dynamic-{gate}-{s}"] = {"model.method": "dynamic", "model.sparsity": s, **options}
    norm: dict[str, Any] = {"model.gate_source": "norm"}
    if PRESETS[preset].model.gate_rank is not None:
        norm["model.gate_rank"] = None
    for s in SPARSITIES:
        found[f"dynamic-norm-{s}"] = {"model.method": "dynamic", "model.sparsity": s, **norm}
    for source in ("bias", "random"):
        control = {"model.gate_source": source, **GATES["softplus"]}
        found[f"dynamic-{source}-0.5"] = {"model.method": "dynamic", "model.sparsity": 0.5, **control}
    more = MORE_GATES | ({LOW_RANK: {**GATES["softplus"], "model.gate_rank": 32}} if preset == "ptb-lstm-small" else {})
    for name, options in more.items():
        found[name] = {"model.method": "dynamic", "model.sparsity": 0.5, **options}
    return found


def headline(preset: str) -> list[str]:
    """The variants of ``HEADLINE`` that a preset has."""
    return [name for name in HEADLINE if name in variants(preset)]


def swept_as(variant: str) -> str:
    """The variant of ``SWEPT`` whose optimiser and rate a variant takes."""
    for swept in sorted(SWEPT, key=len, reverse=True):
        if variant.startswith(swept.rpartition("-")[0] or swept):
            return swept
    return "dynamic-softplus-0.5"  # the controls, and other gates


def tuned(preset: str) -> dict[str, dict[str, Any]]:
    """``variants`` with the optimiser and rate that the sweep chose for the method."""
    return {
        name: {**options, **SWEEP.get(TUNED.get((preset, swept_as(name)), ""), {})}
        for name, options in variants(preset).items()
    }


def sweep(preset: str) -> dict[str, dict[str, Any]]:
    """Options of the runs of two epochs that tell which optimiser and rate suit a method, by name."""
    if preset not in SMALL:
        return {}
    made, steps = variants(preset), 2 * PRESETS[preset].train.eval_every
    return {
        f"{variant}-two-epochs-{name}": {**made[variant], **options, "train.steps": steps}
        for name, options in SWEEP.items()
        for variant in SWEPT
    }


def to_the_end(preset: str) -> dict[str, dict[str, Any]]:
    """Options of the ``RUNNERS_UP`` of a preset, by name."""
    return {
        f"{variant}-to-the-end-{name}": {**variants(preset)[variant], **SWEEP[name]}
        for (of, variant), name in RUNNERS_UP.items()
        if of == preset
    }


def with_dropout(preset: str) -> dict[str, dict[str, Any]]:
    """Options of the headline variants in the regime with dropout, by name."""
    if preset != "ptb-lstm-small":
        return {}
    made = tuned(preset)
    return {f"{name}-dropout-{DROPOUT}": {**made[name], "model.dropout": DROPOUT} for name in headline(preset)}


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        preset: the configuration that it starts from.
        variant: method, gate and sparsity, joined by hyphens.
        seed: of parameters and dropout.
        options: what differs from the preset, {"section.option": value}, the seed included.
        devices: that share the batch.
    """

    preset: str
    variant: str
    seed: int
    options: dict[str, Any]
    devices: int = 1

    @property
    def name(self) -> str:
        """Its name, which is also the path of its files below a folder."""
        return f"{self.preset}/{self.variant}/seed{self.seed}"

    def config(self, directory: str | None = None) -> Config:
        """Its configuration; ``directory`` holds the text. None: the text is downloaded."""
        sections: dict[str, dict[str, Any]] = {"data": {"directory": directory}}
        for name, value in self.options.items():
            section, option = name.split(".")
            sections.setdefault(section, {})[option] = value
        preset = PRESETS[self.preset]
        changed = {name: dataclasses.replace(getattr(preset, name), **options) for name, options in sections.items()}
        return dataclasses.replace(preset, **changed)

    def command(self, workdir: str) -> str:
        """The command of the same run. --data.directory takes a local copy of the text instead."""
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in self.options.items()]
        spread = f"--mesh.data={self.devices}"
        return shlex.join(["python", "train.py", self.preset, f"--workdir={workdir}", spread, *flags])


def cells() -> list[Cell]:
    """All cells, in the order in which they are run: those that decide most come first, and methods take turns."""
    compared = {preset: tuned(preset) for preset in SIZES}
    options = {p: made | sweep(p) | to_the_end(p) | with_dropout(p) for p, made in compared.items()}
    for preset in SMALL:
        options[preset][TWO_DEVICES] = compared[preset]["dynamic-softplus-0.5"]
    runs = [(PUBLISHED, "dense", SEEDS[0])]
    runs += [("ptb-lstm-small", name, SEEDS[0]) for name in headline("ptb-lstm-small")]
    for preset in SMALL:
        runs += [(preset, name, SEEDS[0]) for name in sweep(preset)]
        runs += [(preset, name, SEEDS[0]) for name in to_the_end(preset)]
        runs += [(preset, name, seed) for seed in SEEDS for name in headline(preset)]
    runs += [(PUBLISHED, "dense", seed) for seed in SEEDS]
    for preset in (*SMALL, *PAPER):
        runs += [(preset, name, seed) for seed in SEEDS for name in headline(preset)]
        others_of = [name for name in compared[preset] if name not in MORE_GATES]
        runs += [(preset, name, SEEDS[0]) for name in (*with_dropout(preset), *others_of)]
    again = [("dynamic-softplus-0.5", seed) for seed in MORE_SEEDS] + [(TWO_DEVICES, SEEDS[0])]
    runs += [(preset, name, seed) for preset in SMALL for name, seed in again]
    runs += [(preset, name, SEEDS[0]) for preset in (*SMALL, *PAPER) for name in MORE_GATES]
    return [
        Cell(preset, name, seed, options[preset][name] | {"train.seed": seed}, 2 if name == TWO_DEVICES else 1)
        for preset, name, seed in dict.fromkeys(runs)
    ]


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


def shortened(cell: Cell, epochs: int, epoch_steps: int | None = None) -> Cell:
    """The same run with another number of epochs, each of all steps or of ``epoch_steps`` and then an evaluation.

    The rate of SGD is halved every epoch over the last two fifths of the epochs.
    """
    config = cell.config()
    epoch = epoch_steps or config.train.eval_every
    name, steps = f"{cell.variant}-{epochs}-epochs", epochs * epoch
    options = cell.options | {"train.steps": steps, "train.checkpoint_every": steps}
    if epoch_steps is not None:
        name, options = f"{name}-of-{epoch}-steps", options | {"train.eval_every": epoch}
    if config.optim.name == "sgd":
        first = max(1, math.ceil(0.6 * epochs))
        options |= {
            "optim.plateau_factor": 1.0,
            "optim.transition_steps": epoch,
            "optim.transition_begin": (first - 1) * epoch,
        }
    return dataclasses.replace(cell, variant=name, options=options)
