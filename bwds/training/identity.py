"""What parameters belong to: every checkpoint names the model, the vocabulary and the text that it was made with."""

import dataclasses
import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bwds.array_types import Int32
from bwds.config import Config, ModelConfig
from bwds.data import Corpus, Vocabulary
from bwds.data.sources import SPLITS
from bwds.filesystem import place

FREE = {
    "model": {"implementation"},
    "data": {"directory", "eval_batch_size"},
    "train": {"log_every", "checkpoint_every"},
}
"""Options, by section, that may change when a run goes on. They depend on the machine, and no step depends on them.

The text may lie in another folder, because its digest shows whether it is the same. Another kernel, or another number
of streams in evaluation, changes only the last digits of numbers, as another mesh does. ``eval_every`` may not change:
evaluations decide which parameters are the best, and when sgd lowers its rate.
"""


def identity(model: ModelConfig, vocabulary: Vocabulary) -> dict[str, Any]:
    """JSON values to keep beside the parameters."""
    return {"model": dataclasses.asdict(model), "vocabulary_sha256": vocabulary.sha256}


def text_sha256(corpus: Corpus) -> str:
    """Digest of the text that a run reads: the ids of the training and the validation split."""
    digest = hashlib.sha256()
    for ids in (corpus.train, corpus.valid):
        digest.update(np.int64(len(ids)).tobytes())
        digest.update(np.ascontiguousarray(ids).data)
    return digest.hexdigest()


def ids_sha256(ids: Int32[np.ndarray, " n"]) -> str:
    """Digest of one split, in the ids of a run's vocabulary."""
    return hashlib.sha256(np.ascontiguousarray(ids, np.int32).data).hexdigest()


def text_identity(corpus: Corpus) -> dict[str, Any]:
    """JSON values to keep beside the parameters: ``text_sha256``, and ``ids_sha256`` of every split."""
    splits = {split: ids_sha256(getattr(corpus, split)) for split in SPLITS}
    return {"text_sha256": text_sha256(corpus), "splits_sha256": splits}


def settled(config: Config) -> Config:
    """The configuration with an absolute path to the text, which is the same from every working directory.

    Raises:
        ValueError: it is no folder's name; see ``place``.
    """
    if config.data.directory is None:
        return config
    directory = str(place(config.data.directory, "data.directory").absolute())
    return replace(config, data=replace(config.data, directory=directory))


def without_place(config: Config) -> Config:
    """The configuration without the folder of the text, which may differ between machines."""
    return replace(config, data=replace(config.data, directory=None))


def check_text(info: dict[str, Any], text: str, workdir: Path) -> None:
    """Raises ``ValueError`` if a checkpoint or summary has another digest of the text than ``text``, the digest now."""
    if info.get("text_sha256") not in (None, text):
        raise ValueError(
            f"The text has changed since the run in {str(workdir)!r} began: the vocabulary is the same, the "
            "training or validation split is not. Put back the old text to resume it, or give another workdir "
            "for a new run."
        )


def check_identity(info: dict[str, Any], model: ModelConfig, vocabulary: Vocabulary, workdir: Path) -> None:
    """Checks that the files of a run's folder are those that its parameters were made with.

    Checkpoints of earlier versions lack some of the values; these, and options that are newer, are not compared.

    Args:
        info: the values kept beside the parameters.
        model: as config.json has it.
        vocabulary: as vocabulary.txt has it.
        workdir: the run's folder, for the message.

    Raises:
        ValueError: one of them has changed.
    """
    # Compared as JSON, in which a tuple is a list.
    there, now = info.get("model", {}), json.loads(json.dumps(dataclasses.asdict(model)))
    changed = [name for name in now.keys() & there.keys() - FREE["model"] if now[name] != there[name]]
    if changed:
        differences = "; ".join(f"{name} was {there[name]!r} and is {now[name]!r}" for name in sorted(changed))
        raise ValueError(
            f"The config.json in {str(workdir)!r} is not that of its checkpoint ({differences}); put it back."
        )
    known = info.get("vocabulary_sha256")
    if known is not None and known != vocabulary.sha256:
        raise ValueError(
            f"The vocabulary.txt in {str(workdir)!r} is not that of its checkpoint: tokens have changed. Put back a "
            "copy of it, or remove it and give the command of the run again."
        )
