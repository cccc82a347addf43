"""Parameters of a run that was trained."""

import contextlib
import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax

from bwds.card import model_card
from bwds.config import Config
from bwds.data import Vocabulary
from bwds.digest import digest
from bwds.linear import Params
from bwds.model import decode_params, language_model
from bwds.trained_model import TrainedModel
from bwds.training.checkpoint import best_checkpoints, last_checkpoints
from bwds.training.identity import check_identity
from bwds.training.metrics import perplexity
from bwds.training.optim import make_optimizer
from bwds.training.pruning import hold_fixed
from bwds.training.step import evaluated_params, init_state
from bwds.training.workdir import VOCABULARY_FILE, read_config


def load_params(config: Config, workdir: Path, which: Literal["best", "last"]) -> tuple[Params, int]:
    """Parameters of a run and the step they are from; see ``load_checkpoint``."""
    params, info = load_checkpoint(config, workdir, which)
    return params, info["step"]


def load_checkpoint(config: Config, workdir: Path, which: Literal["best", "last"]) -> tuple[Params, dict[str, Any]]:
    """Parameters of a run, as it evaluates them, and the info kept beside them; nothing in the folder is changed.

    Args:
        config: the run's.
        workdir: the run's folder.
        which: "best": the lowest validation loss; "last": the latest state.

    Raises:
        ValueError: there is no such checkpoint, it is damaged, or it was made with another model or vocabulary than
            those in the folder.
    """
    vocabulary = Vocabulary.load(workdir / VOCABULARY_FILE, config.data.tokens)
    lm = language_model(config.model)
    check = partial(check_identity, model=config.model, vocabulary=vocabulary, workdir=workdir)
    if which == "last":
        optimizer = hold_fixed(make_optimizer(config.optim, config.train.steps), config)
        fresh = partial(init_state, lm, optimizer, batch_size=config.data.batch_size)
        template = jax.eval_shape(fresh, jax.random.key(0))
        state, info = last_checkpoints(workdir, read_only=True).restore(template, check)
        params = evaluated_params(state)
    else:
        template = jax.eval_shape(lm.init, jax.random.key(0))
        params, info = best_checkpoints(workdir, read_only=True).restore(template, check)
    return params, info


def load_run(workdir: Path) -> TrainedModel:
    """The model of a run with its lowest validation loss, laid out for decoding; see ``bwds.load``."""
    config = read_config(workdir)
    params, info = load_checkpoint(config, workdir, "best")
    # The kernel depends on the machine, so the one of the training need not run here.
    model = dataclasses.replace(config.model, implementation=None)
    vocabulary = Vocabulary.load(workdir / VOCABULARY_FILE, config.data.tokens)
    card = model_card(model, params, facts(config, info, workdir, "best"))
    return TrainedModel(model, decode_params(params, model), vocabulary, card, digest(params))


def facts(
    config: Config, info: dict[str, Any], workdir: Path, which: Literal["best", "last"], sparsity: float | None = None
) -> list[str]:
    """Lines on a checkpoint for the card of its model: its training and its perplexities.

    Args:
        config: the run's.
        info: the info kept beside the checkpoint.
        workdir: the run's folder, where evaluations have left their results.
        which: the checkpoint.
        sparsity: at which the perplexities are wanted; None: the run's own.
    """
    known = {}
    if sparsity is None and "loss" in info:
        known["validation"] = perplexity(info["loss"])
    for path in sorted(workdir.glob("eval_*.json")):
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            found = json.loads(path.read_text(encoding="utf-8"))
            same = (found["step"], found["checkpoint"], found.get("sparsity")) == (info["step"], which, sparsity)
            texts = info.get("splits_sha256", {})
            if same and found["text_sha256"] == texts.get(found["split"]):
                name = {"valid": "validation", "train": "training"}.get(found["split"], found["split"])
                known[name] = float(found["perplexity"])
    figures = ", ".join(f"{name} {value:.2f}" for name, value in known.items()) or "not measured"
    trained = (
        f"Trained on: {config.data.dataset}, {info['step']:,} steps of {config.train.steps:,} ({which} checkpoint)"
    )
    return [f"{trained}, {config.optim.name}, seed {config.train.seed}", f"Perplexity: {figures}"]
