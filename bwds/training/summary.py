"""The summary of a finished run."""

import importlib.metadata
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import jax

from bwds.config import Config
from bwds.cost import cost
from bwds.decode_speed import compare_decode_speed
from bwds.digest import digest
from bwds.linear import Params
from bwds.training.metrics import METRICS_FILE, perplexity, read_metrics
from bwds.training.workdir import SUMMARY_FILE

_FIGURES = (
    "steps",
    "validation_perplexity",
    "realised_density",
    "relative_cost",
    "decode_tokens_per_second",
    "parameters",
    "best_step",
)
_OPTIONAL_FIGURES = ("tokens_per_second", "dense_decode_tokens_per_second", "decode_speedup")


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """The summary.json of a finished run; None while the run is not finished.

    Raises:
        ValueError: the file is damaged.
    """
    path = workdir / SUMMARY_FILE
    if not path.is_file():
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        summary = None
    if not isinstance(summary, dict) or not _is_whole(summary):
        raise ValueError(
            f"{path} is damaged. Remove it and give the same command again: it is made anew from the checkpoints."
        )
    return summary


def _is_whole(summary: dict[str, Any]) -> bool:
    def is_number(value: Any) -> bool:
        return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)

    if not {*_FIGURES, *_OPTIONAL_FIGURES} <= summary.keys():
        return False
    # The dense model's speed and the ratio are both there, or neither.
    paired = (summary["decode_speedup"] is None) == (summary["dense_decode_tokens_per_second"] is None)
    given = [summary[name] for name in _OPTIONAL_FIGURES if summary[name] is not None]
    return paired and all(map(is_number, [*given, *(summary[name] for name in _FIGURES)]))


def summarise(
    config: Config,
    workdir: Path,
    params: Params,
    best: tuple[Params, dict[str, Any]],
    *,
    command: str,
) -> dict[str, Any]:
    """The content of summary.json. Perplexity, density and speed of decoding are those of the best checkpoint.

    Args:
        config: the run's.
        workdir: the run's folder, with its metrics.
        params: the parameters after the last step, for the digest; on the host or a device.
        best: parameters and info of the checkpoint with the lowest validation loss.
        command: kept as it is.

    Returns:
        steps, validation_perplexity, realised_density, relative_cost (multiply-adds, gate and softmax included,
        against the dense model of the same size), tokens_per_second (median over the run; None if none of its
        processes did more than one step), the figures of ``compare_decode_speed``, parameters, parameters_sha256,
        text_sha256, best_step, device, versions and command.
    """
    best_params, info = best
    decoding = compare_decode_speed(config.model, best_params)
    lines = read_metrics(workdir / METRICS_FILE)
    speeds = [line.get("tokens_per_second") for line in lines if line["split"] == "train"]
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "optax", "orbax-checkpoint", "numpy")
    return {
        "steps": config.train.steps,
        "validation_perplexity": perplexity(info["loss"]),
        "realised_density": info["density"],
        "relative_cost": cost(config.model).relative,
        "tokens_per_second": statistics.median(known) if (known := [s for s in speeds if s is not None]) else None,
        **decoding,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "parameters_sha256": digest(params),
        "text_sha256": info.get("text_sha256"),
        "best_step": info["step"],
        "device": f"{device.device_kind} ({device.platform}, {jax.device_count()} of them)",
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "command": command,
    }
