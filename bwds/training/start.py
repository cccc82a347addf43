"""Starts a run from the parameters of another run, which are made dynamic on the way if necessary.

The configuration of the new run holds the digest of these parameters, which identifies them wherever they come from. It
also holds the results of a conversion, so that a run that was stopped goes on without doing it again.
"""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from bwds.array_types import Int32
from bwds.budgets import matrix_sparsity
from bwds.checks import require
from bwds.config import Config, ModelConfig
from bwds.convert import convert
from bwds.data import Corpus, Vocabulary
from bwds.digest import digest
from bwds.filesystem import place
from bwds.linear import Params
from bwds.training.checkpoint import last_checkpoints
from bwds.training.trained import load_params
from bwds.training.workdir import CONFIG_FILE, VOCABULARY_FILE, read_config

# A conversion is calibrated on the beginning of the training split, in this many streams of so many tokens.
_STREAMS, _TOKENS = 16, 129
_SHAPE = ("cell", "num_layers", "hidden_size", "tied_softmax")


def start(config: Config, corpus: Corpus, workdir: Path, folder: str | Path) -> tuple[Params | None, Config]:
    """Parameters to start from, and the configuration with their digest.

    Args:
        config: the run's, with the size of the vocabulary.
        corpus: its text.
        workdir: its folder; if the run has begun there, the conversion in its configuration is used.
        folder: that of the run whose best parameters it starts from.

    Returns:
        Parameters, or None if the run has a checkpoint of its own to go on from; and the configuration.

    Raises:
        ValueError: there is no such run, it has another vocabulary or shape, or its gates are of another kind.
    """
    folder = place(folder, "start_from")
    require(
        folder.resolve() != workdir.resolve(),
        f"start_from is the run's own folder, {str(folder)!r}; give the same command without it, or another workdir.",
    )
    source = read_config(folder)
    require(
        Vocabulary.load(folder / VOCABULARY_FILE, corpus.vocabulary.tokens) == corpus.vocabulary,
        f"The run in {str(folder)!r} has another vocabulary than this text: {source.model.vocab_size:,} tokens there, "
        f"{config.model.vocab_size:,} here. Start from a run on the same text, with the same data.vocab_limit.",
    )
    _require_kind(source.model, config.model, folder)
    params, _ = load_params(source, folder, "best")
    config = replace(config, train=replace(config.train, start_sha256=digest(params)))
    begun = _begun(config, workdir)
    if begun is not None and last_checkpoints(workdir, read_only=True).steps:
        return None, begun
    params, model = started(params, source.model, config.model, calibration_tokens(corpus.train))
    # On the host, because it is not decided yet which devices they go to.
    return jax.device_get(params), replace(config, model=model) if begun is None else begun


def _require_kind(source: ModelConfig, model: ModelConfig, folder: Path) -> None:
    run = f"The run in {str(folder)!r} cannot be started from"
    for name in _SHAPE:
        there, here = getattr(source, name), getattr(model, name)
        require(there == here, f"{run}: its {name} is {there!r}, here it is {here!r}. Give the same.")
    if _converts(source, model):
        return
    gated, gates = source.method == "dynamic", model.method == "dynamic"
    require(
        gated or not gates,
        f"{run}: it has no gates, and the gate_source {model.gate_source!r} needs trained ones. Take "
        "model.gate_source='norm', whose gates need no training.",
    )
    require(gates or not gated, f"{run}: it is dynamic, and a model of method {model.method!r} has no use for gates.")
    require(
        model.method != "static-block" or (source.method, source.sparsity) == ("static-block", model.sparsity),
        f"{run}: a static-block model keeps other weights than a model of method {source.method!r} and sparsity "
        f"{source.sparsity} has.",
    )
    if not gates:
        return
    for name in ("gate_source", "gate_rank", "block_size"):
        there, here = getattr(source, name), getattr(model, name)
        require(there == here, f"{run}: its {name} is {there!r}, here it is {here!r}. Give the same.")


def _converts(source: ModelConfig, model: ModelConfig) -> bool:
    return source.method != "dynamic" and model.method == "dynamic" and model.gate_source == "norm"


def _begun(config: Config, workdir: Path) -> Config | None:
    """The configuration with the conversion of the run in the folder; None unless that began with these parameters."""
    if not (workdir / CONFIG_FILE).is_file():
        return None
    there = read_config(workdir)
    if there.train.start_sha256 != config.train.start_sha256:
        return None
    sparsities = there.model.sparsities if config.model.sparsities is None else config.model.sparsities
    return replace(config, model=replace(config.model, sparsities=sparsities))


def started(
    params: Params, source: ModelConfig, model: ModelConfig, tokens: Int32[np.ndarray, "B T"]
) -> tuple[Params, ModelConfig]:
    """Parameters of the source as those of a model of the same shape, and its configuration; converted if necessary."""
    if _converts(source, model):
        dense = replace(model, method="dense")
        params, converted = convert(
            params, dense, sparsity=model.sparsity, tokens=tokens, budgets=model.sparsities is None
        )
        return params, replace(model, sparsities=converted.sparsities or model.sparsities)
    if model.method != "dynamic" or source.sparsities is None or model.sparsities is not None:
        return params, model
    # The new model takes over how the source shares blocks among its matrices, at any sparsity.
    shares = tuple((name, float(matrix_sparsity(source, name, model.sparsity))) for name in source.matrices)
    return params, replace(model, sparsities=shares)


def calibration_tokens(ids: Int32[np.ndarray, " n"]) -> Int32[np.ndarray, "B T"]:
    """The first tokens of a text, in streams side by side; all tokens of a short text."""
    streams = min(_STREAMS, max(1, len(ids) // 2))
    length = min(_TOKENS, len(ids) // streams)
    return ids[: streams * length].reshape(streams, length)
