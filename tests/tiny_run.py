"""A corpus and a model so small that a whole training run takes seconds."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bwds.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bwds.training import train
from bwds.training.metrics import read_metrics
from bwds.training.signals import InterruptedRunError

WORDS = [f"w{i}" for i in range(30)]


def write_corpus(directory: Path, *, seed: int = 0) -> Path:
    """Files train.txt, valid.txt and test.txt with words that follow one another by a rule."""
    directory.mkdir(parents=True, exist_ok=True)
    choose = random.Random(seed)
    for name, lines in (("train", 60), ("valid", 12), ("test", 15)):
        text = []
        for _ in range(lines):
            start = choose.randrange(len(WORDS))
            text.append(" ".join(WORDS[(start + 2 * i) % len(WORDS)] for i in range(choose.randrange(4, 9))))
        # All words occur in training.
        (directory / f"{name}.txt").write_text("\n".join([*text, *[" ".join(WORDS)] * (name == "train")]) + "\n")
    return directory


def config(corpus: Path, **changes: Any) -> Config:
    """A run of 16 steps, a little more than an epoch; ``changes`` are options by name, like ``steps=3``."""
    sections: dict[str, dict[str, Any]] = {
        "model": {
            "hidden_size": 32,
            "num_layers": 1,
            "block_size": 16,
            "sparsity": 0.5,
            "dropout": 0.2,
            "weight_dropout": 0.1,
        },
        "data": {
            "dataset": "text",
            "directory": str(corpus),
            "batch_size": 4,
            "sequence_length": 8,
            "eval_batch_size": 2,
        },
        "optim": {"name": "adamw", "learning_rate": 3e-2, "warmup_steps": 2, "ema_decay": 0.9},
        "train": {"steps": 16, "eval_every": 3, "checkpoint_every": 4, "log_every": 1},
    }
    classes = {"model": ModelConfig, "data": DataConfig, "optim": OptimConfig, "train": TrainConfig}
    for name, value in changes.items():
        (section,) = [s for s, made in classes.items() if name in made.__dataclass_fields__]
        sections[section][name] = value
    return Config(**{name: made(**sections[name]) for name, made in classes.items()})


def arguments(config: Config, workdir: Path, mesh: Sequence[str] = ("--mesh.data", "1")) -> list[str]:
    """The same run for train.py."""
    flags = ["--workdir", str(workdir), *mesh]
    for section in ("model", "data", "optim", "train"):
        for name, value in vars(getattr(config, section)).items():
            if name in ("vocab_size", "start_sha256"):
                continue
            option = f"--{section}.{name.replace('_', '-')}"
            if isinstance(value, bool):
                flags.append(option if value else f"--{section}.no-{name.replace('_', '-')}")
            else:
                flags += [option, str(value)]
    return flags


def lines(workdir, *, timed=False):
    """Lines of metrics.jsonl, without the times unless ``timed``."""
    found = read_metrics(workdir / "metrics.jsonl")
    return found if timed else [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in found]


def finish(config, workdir, *, tries=100):
    """Calls ``train`` until it ends; returns the summary and how often it did not."""
    for stopped in range(tries):
        try:
            return train(config, workdir, progress=False), stopped
        except (InterruptedRunError, Killed):
            pass
    pytest.fail(f"{tries} tries were not enough.")


class Killed(Exception):
    """Stands for SIGKILL."""
