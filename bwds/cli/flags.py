"""A library's errors name fields, such as ``data.batch_size``; on the command line these are flags."""

import dataclasses
import re
from collections import Counter
from typing import Any

from bwds.config import DataConfig, ModelConfig, OptimConfig, TrainConfig
from bwds.training.devices import DistributedConfig, MeshConfig

_SECTIONS: dict[str, Any] = {
    "model": ModelConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "mesh": MeshConfig,
    "distributed": DistributedConfig,
}
_FIELDS = {name: [field.name for field in dataclasses.fields(section)] for name, section in _SECTIONS.items()}
_COUNT = Counter(field for fields in _FIELDS.values() for field in fields)
_SECTION_OF = {field: name for name, fields in _FIELDS.items() for field in fields if _COUNT[field] == 1}


def as_flags(sentence: str) -> str:
    """The sentence with flags in place of fields.

    A field is recognised as ``section.field``; as ``field=`` if only one section has such a field; and in a sentence
    that begins with ``section:``, as the first word or wherever its name has an underscore. ``start_from``, and
    ``workdir`` as the first word of a sentence, are arguments of ``bwds.training.train`` and have flags of their own.

    Example:
        ```python
        as_flags("take a smaller data.batch_size")    # take a smaller --data.batch-size
        as_flags("model: sparsity is 2.0")            # --model.sparsity is 2.0
        ```
    """
    section, _, rest = sentence.partition(": ")
    if section in _FIELDS:
        rest = re.sub(r"^\w+|(?<![\w.'\"/-])\w+_\w+\b(?!\.)", lambda m: _flag(section, m[0]), rest)
        sentence = rest if rest.startswith("--") else f"{section}: {rest}"
    sentence = re.sub(r"(?<![\w.'\"/-])([a-z]+)\.(\w+)\b", lambda m: _flag(m[1], m[2], m[0]), sentence)
    sentence = re.sub(r"(?<![\w.'\"/-])(\w+)(?==)", lambda m: _flag(_SECTION_OF.get(m[1], ""), m[1]), sentence)
    return re.sub(r"^workdir\b|(?<![\w.'\"/-])start_from\b", lambda m: "--" + m[0].replace("_", "-"), sentence)


def _flag(section: str, field: str, otherwise: str | None = None) -> str:
    known = field in _FIELDS.get(section, ())
    return f"--{section}.{field.replace('_', '-')}" if known else otherwise or field
