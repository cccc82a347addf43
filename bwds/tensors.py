"""Nested dicts of arrays as files of safetensors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def can_write() -> bool:
    """Whether safetensors is installed."""
    try:
        _safetensors()
    except ValueError:
        return False
    return True


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by their path, "layer_0/input/kernel"."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return leaves


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``flat``: nested dicts of leaves by their path. No path may be the beginning of another one."""
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        *folders, name = path.split("/")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[name] = value
    return tree


def tensor_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """A file of safetensors with these tensors and metadata.

    Raises:
        ValueError: safetensors is not installed.
    """
    return _safetensors().numpy.save(dict(arrays), dict(metadata))


def read_metadata(path: Path) -> dict[str, str]:
    """The texts in the header of a file; see ``read_tensors``."""
    return _read(path, lambda file: file.metadata() or {})


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file, in memory.

    Raises:
        ValueError: it is not of that format, or cut short; NumPy does not know the type of a tensor; or safetensors is
            not installed.
        OSError: it cannot be read.
    """
    return _read(path, lambda file: {name: file.get_tensor(name) for name in sorted(file.keys())})


def _read(path: Path, read: Callable[[Any], Any]) -> Any:
    package = _safetensors()
    try:
        with package.safe_open(str(path), framework="np") as file:
            return read(file)
    except (package.SafetensorError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} is no whole file of safetensors ({str(error).splitlines()[0]}): it is of another kind, or was cut "
            "short; take another copy."
        ) from error


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ValueError(
            'Models in one file need safetensors, which is not installed: pip install -e ".[files]" in a clone of the '
            "repository, or pip install safetensors."
        ) from error
    return safetensors
