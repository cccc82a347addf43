"""One trained model in one file, to hand on: no pickle, no code, nothing that only training needs.

A file is in the format of safetensors. Its tensors are the parameters, named by their path, such as
"layer_0/input/kernel". Its metadata are texts:

    format, version       "bwds" and "1"
    config                the ModelConfig as JSON
    vocabulary            the tokens as a JSON list, in the order of their ids; absent if there is none
    tokens                the kind of the tokens: word, character or subword
    vocabulary_sha256     digest of the tokens, as a run keeps it beside its checkpoints
    parameters_sha256     digest of all parameters, as in summary.json
    card                  what the model is, for people
    metadata_sha256       digest of the entries above

The digests show whether a file was damaged or changed; they do not show who wrote it.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bwds.arguments import Tree, fitting, require_config
from bwds.card import model_card
from bwds.checks import require, require_choice
from bwds.config import ModelConfig, parse_json, section_of
from bwds.digest import digest
from bwds.filesystem import place, write_bytes
from bwds.model import decode_params, parameter_shapes
from bwds.run_config import Tokens
from bwds.tensors import flat, nested, read_metadata, read_tensors, tensor_bytes
from bwds.trained_model import TrainedModel
from bwds.vocabulary import Vocabulary

FORMAT, VERSION = "bwds", 1
RUN_MODEL = "model.safetensors"
"""The file in which a finished run keeps its best parameters."""


def save_model(
    path: str | os.PathLike[str],
    params: Tree,
    config: ModelConfig,
    *,
    vocabulary: Vocabulary | Sequence[str] | None = None,
    card: str | None = None,
) -> None:
    """Writes a model into one file, whole or not at all.

    Example:
        ```python
        bwds.save_model("model.safetensors", params, config, vocabulary=vocabulary.words)
        loaded = bwds.load_model("model.safetensors")
        ```

    Args:
        path: of the file; what was there is replaced.
        params: the parameters, float32 or in the configuration's dtype. They are written as they are: as ``lm.init``
            makes them, to be trained on, or laid out by ``bwds.decode_params``, which for bfloat16 takes half the room.
            They may be spread over the devices of one process.
        config: the model's. ``implementation`` is not written: which kernel computes depends on the machine.
        vocabulary: the tokens in the order of their ids, a plain sequence being words; without them the model reads and
            writes ids alone.
        card: a description of the model for people; None: method, sizes and cost.

    Raises:
        ValueError: parameters or vocabulary do not fit the configuration, a parameter is not finite, or safetensors is
            not installed.
        OSError: the file cannot be written.
    """
    require_config(config)
    config = dataclasses.replace(config, implementation=None)
    require(isinstance(card, str | None), f"card is a {type(card).__name__}; it must be a text.")
    params = fitting(params, parameter_shapes(config), config)
    for name, array in flat(params).items():
        require(
            array.is_fully_addressable,
            f"params hold {name} spread over several processes; gather it first, as with "
            "jax.experimental.multihost_utils.process_allgather.",
        )
    arrays = {name: np.ascontiguousarray(array) for name, array in flat(params).items()}
    _require_numbers(arrays, config)
    words = vocabulary if isinstance(vocabulary, Vocabulary | None) else Vocabulary(tuple(vocabulary))
    _require_words(words, config)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(dataclasses.asdict(config)),
        "parameters_sha256": digest(nested(arrays)),
        "card": model_card(config, params) if card is None else card,
    }
    if words is not None:
        metadata |= {"vocabulary": json.dumps(words.words), "vocabulary_sha256": words.sha256, "tokens": words.tokens}
    metadata["metadata_sha256"] = _metadata_sha256(metadata)
    write_bytes(place(path, "path", "file"), tensor_bytes(arrays, metadata))


def load_model(path: str | os.PathLike[str], *, for_decoding: bool = True) -> TrainedModel:
    """The model in a file that ``save_model`` wrote.

    Example:
        ```python
        loaded = bwds.load_model("model.safetensors")
        print(loaded.generate("the company said"))
        ```

    It needs safetensors, and for text of subwords tokenizers; the extra ``files`` installs both. Nothing in the file is
    run.

    Args:
        path: of the file.
        for_decoding: lay the parameters out for decoding, in the configuration's dtype; False: leave them as they are
            in the file, to train on or to convert.

    Raises:
        ValueError: there is no such file; it is cut short, or of another kind or a later version; what it holds has
            changed since it was written, or is not the parameters of its configuration, or not finite; or safetensors
            is not installed.
        OSError: the file cannot be read.
    """
    path = place(path, "path")
    require(not path.is_dir(), f"{str(path)!r} is a folder; bwds.load reads the folder of a run.")
    require(path.is_file(), f"There is no file {str(path)!r}; bwds.save_model or bwds eval --export writes one.")
    metadata = read_metadata(path)
    config, words = _described(path, metadata)
    arrays = read_tensors(path)
    try:
        _require_names(arrays, config)
        params = nested(arrays)
        require(
            digest(params) == metadata["parameters_sha256"],
            "its parameters have changed since it was written, they are not those of their digest; take another copy.",
        )
        params = fitting(params, parameter_shapes(config), config)
        _require_numbers(arrays, config)
    except ValueError as error:
        raise ValueError(f"{path} is no model that can be used: {error}") from error
    if for_decoding:
        params = decode_params(params, config)
    return TrainedModel(config, params, words, metadata["card"], metadata["parameters_sha256"])


def load(path: str | os.PathLike[str]) -> TrainedModel:
    """A trained model, from one file or from the folder of a run.

    Example:
        ```python
        loaded = bwds.load("runs/quick")              # parameters of the lowest validation loss
        loaded = bwds.load("model.safetensors")       # as of bwds eval --export, or bwds.save_model
        print(loaded.generate("the company said"))
        ```

    Args:
        path: of the file, or the workdir of a run. A file needs safetensors, and so does the folder of a finished run,
            which has such a file. The folder of an unfinished run needs the extra ``train``.

    Returns:
        The model, its parameters in its compute dtype and laid out for decoding (``bwds.decode_params``).

    Raises:
        ValueError: there is no such model, it is damaged, or a package is missing.
        OSError: the file cannot be read.
    """
    path = place(path, "path")
    if not path.is_dir():
        return load_model(path)
    try:
        # ``bwds.training`` wrote the folder of a run, and reads it.
        from bwds.training.trained import load_run

        return load_run(path)
    except ModuleNotFoundError as error:
        # The summary is written last: without it the run is not finished, or goes on from there.
        if (path / RUN_MODEL).is_file() and (path / "summary.json").is_file():
            return load_model(path / RUN_MODEL)
        raise ValueError(
            f"{str(path)!r} is the folder of a run that is not finished, and {error.name}, which reads checkpoints, "
            'is not installed: pip install -e ".[train]" in a clone of the repository. Or load one file, which needs '
            f"none of that; where it is installed, bwds eval --workdir {path} --export FILE writes it."
        ) from error


def _described(path: Path, metadata: Mapping[str, str]) -> tuple[ModelConfig, Vocabulary | None]:
    """Configuration and vocabulary; ``ValueError`` unless the metadata are those of ``save_model``, unchanged."""
    require(
        metadata.get("format") == FORMAT and "version" in metadata,
        f"{path} is a file of safetensors, and none of bwds.save_model: its metadata do not say so.",
    )
    require(
        metadata["version"] == str(VERSION),
        f"{path} is of version {metadata['version'][:20]!r} of the format, and this bwds reads version {VERSION}; take "
        "a later bwds.",
    )
    rest = {name: value for name, value in metadata.items() if name != "metadata_sha256"}
    require(
        metadata.get("metadata_sha256") == _metadata_sha256(rest)
        and {"config", "card", "parameters_sha256"} <= metadata.keys(),
        f"{path} has changed since it was written: its metadata are not those of their digest. Take another copy.",
    )
    try:
        config = section_of("model", ModelConfig, parse_json(metadata["config"]))
        words = None
        if "vocabulary" in metadata:
            kind: Any = metadata.get("tokens", "word")
            require_choice("tokens", kind, Tokens)
            words = Vocabulary(tuple(json.loads(metadata["vocabulary"])), kind)
            require(words.sha256 == metadata.get("vocabulary_sha256"), "its vocabulary is not that of its digest.")
        _require_words(words, config)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no model that can be used: {error}") from error
    return config, words


def _metadata_sha256(metadata: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _require_names(arrays: Mapping[str, np.ndarray], config: ModelConfig) -> None:
    """Raises ``ValueError`` unless there are all parameters of a configuration, and no others."""
    needed = set(flat(parameter_shapes(config)))
    lacking = sorted(needed - arrays.keys())
    require(not lacking, f"it has no {', '.join(lacking)}, which a model of its configuration has.")
    if config.method == "dynamic" and config.gate_source == "norm":
        # ``decode_params`` adds the norms of blocks.
        kernels = (name for name in needed if name.startswith("layer_") and name.endswith("/kernel"))
        needed |= {name.removesuffix("kernel") + "gate/norms" for name in kernels}
    others = sorted(arrays.keys() - needed)
    require(not others, f"it has {', '.join(map(ascii, others))}, which no model of its configuration has.")


def _require_numbers(arrays: Mapping[str, np.ndarray], config: ModelConfig) -> None:
    types = dict.fromkeys(["float32", config.dtype])
    for path, array in arrays.items():
        require(
            str(array.dtype) in types,
            f"params hold {path} of type {array.dtype}; parameters of this model are {' or '.join(types)}.",
        )
        require(bool(np.isfinite(array).all()), f"params hold numbers in {path} that are not finite.")


def _require_words(words: Vocabulary | None, config: ModelConfig) -> None:
    if words is None:
        return
    require(all(isinstance(word, str) for word in words.words), "The vocabulary must be of strings.")
    require(
        len(words) == config.vocab_size,
        f"The vocabulary has {len(words)} tokens and the model {config.vocab_size}; they must be as many.",
    )
