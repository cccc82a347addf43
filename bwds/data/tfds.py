"""Corpora of TensorFlow Datasets, without TensorFlow: prepared as array records, read as a data source.

Prepared data lie in ``$TFDS_DATA_DIR``, or in the folder ``tfds`` of the cache. TFDS prepares them in a folder of
another name and renames it at the end, so a half-written dataset is never taken for a whole one.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import tensorflow_datasets as tfds

from bwds.data.builders import BUILDERS, TFDS_SPLITS
from bwds.data.sources import Split, cache_dir
from bwds.filesystem import place
from bwds.output import tell

_VALIDATION_NAMES = ("validation", "valid", "dev")
_CARVED_PERCENT = 5
_EXAMPLES_AT_ONCE = 64


def own_splits(name: str) -> dict[str, Split]:
    """Train, valid and test of ptb, wikitext2 or wikitext103, downloaded.

    Raises:
        ValueError: the download failed.
    """
    builder = _prepare(
        lambda: BUILDERS[name](data_dir=_data_dir()),
        way_out="Without a network, give the folder with its train, valid and test files: "
        f"data.dataset={name!r} and data.directory=DIR.",
    )
    return _read(builder, TFDS_SPLITS, "text")


def splits(name: str) -> dict[str, Split]:
    """Train, valid and test of a dataset that TFDS knows; each line of an example's text is a line.

    The text is the feature ``text``, or the only text feature. A missing validation or test split is cut from the
    end of train, 5% of its examples each, validation before test.

    Raises:
        ValueError: no such dataset, no or several text features, no train split, or it could not be prepared.
    """
    try:
        builder = tfds.builder(name, data_dir=_data_dir())
    except Exception as error:
        raise ValueError(
            f"TensorFlow Datasets cannot open {name!r}: {_first_line(error)} Its catalogue is at "
            "https://www.tensorflow.org/datasets/catalog; text files of yours are read with data.dataset='text'."
        ) from error
    feature = _text_feature(builder)  # before the work of preparing
    builder = _prepare(
        lambda: tfds.builder(name, data_dir=_data_dir()),
        way_out="Text files of yours are read with data.dataset='text' and data.directory=DIR.",
    )
    return _read(builder, _split_instructions(builder), feature)


def _data_dir() -> Path:
    return place(os.environ.get("TFDS_DATA_DIR") or cache_dir() / "tfds", "TFDS_DATA_DIR")


def _prepare(make: Callable[[], tfds.core.DatasetBuilder], *, way_out: str) -> tfds.core.DatasetBuilder:
    """A builder whose data are on disk."""
    builder = make()
    if builder.data_path.exists():
        return builder
    tell(f"Preparing the dataset {builder.name} in {builder.data_path} ...")
    tfds.disable_progress_bar()
    try:
        # TFDS would try for minutes to reach a server that does not answer.
        hosts = {urlsplit(url).netloc: url for url in (builder.url_infos or {})}
        if hosts and not any(map(_answers, hosts.values())):
            raise ConnectionError(f"none of {', '.join(hosts)} can be reached")
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False, force_checksums_validation=True),
                file_format="array_record",
            )
    # A builder runs code of any kind, over the network: there is no common class for what can go wrong.
    except Exception as error:
        if builder.data_path.exists():
            return make()  # another process was faster
        raise ValueError(
            f"The dataset {builder.name!r} could not be prepared in {builder.data_path}: "
            f"{type(error).__name__}: {_first_line(error)} {way_out}"
        ) from error
    return builder


def _answers(url: str) -> bool:
    try:
        requests.head(url, timeout=10)
    except requests.RequestException:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".") + "."


def _text_feature(builder: tfds.core.DatasetBuilder) -> str:
    features = builder.info.features or {}
    names = [name for name, feature in features.items() if isinstance(feature, tfds.features.Text)]
    if "text" in names:
        return "text"
    if len(names) != 1:
        raise ValueError(
            f"The dataset {builder.name!r} has {len(names)} text features ({', '.join(names) or 'none'}); it needs "
            f"one, or one named 'text'. Its features are {', '.join(features)}."
        )
    return names[0]


def _split_instructions(builder: tfds.core.DatasetBuilder) -> dict[str, str]:
    there = list(builder.info.splits)
    if "train" not in there:
        raise ValueError(f"The dataset {builder.name!r} has no train split, only {', '.join(there) or 'none'}.")
    named = {
        "valid": next((name for name in _VALIDATION_NAMES if name in there), None),
        "test": "test" if "test" in there else None,
    }
    end, instructions = 100, {}
    for split in ("test", "valid"):
        begin = end
        if named[split] is None:
            begin -= _CARVED_PERCENT
        instructions[split] = named[split] or f"train[{begin}%:{end}%]"
        end = begin
    return {"train": f"train[:{end}%]", **instructions}


def _read(builder: tfds.core.DatasetBuilder, instructions: dict[str, str], feature: str) -> dict[str, Split]:
    return {
        split: Split(f"{builder.name}, split {instruction}", _lines(builder, instruction, feature))
        for split, instruction in instructions.items()
    }


def _lines(builder: tfds.core.DatasetBuilder, instruction: str, feature: str) -> Iterator[str]:
    try:
        source: Any = builder.as_data_source(instruction)
        for begin in range(0, len(source), _EXAMPLES_AT_ONCE):
            examples = source.__getitems__(range(begin, min(begin + _EXAMPLES_AT_ONCE, len(source))))
            for example in examples:
                yield from example[feature].decode("utf-8").removesuffix("\n").split("\n")
    except Exception as error:
        raise ValueError(
            f"The prepared data of {builder.name!r} in {builder.data_path} cannot be read: {type(error).__name__}: "
            f"{_first_line(error)} Delete that folder, and it is prepared again."
        ) from error
