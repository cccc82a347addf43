"""Registers this package's types with ``jax.export``, so that it can write programs that take or return them."""

import contextlib
from typing import TypeVar

import jax.export

Type = TypeVar("Type", bound=type)


def serializable(nodetype: Type) -> Type:
    """Registers a NamedTuple under its name, "bwds.NAME"."""
    # A module that is loaded again finds its name taken.
    with contextlib.suppress(ValueError):
        jax.export.register_namedtuple_serialization(nodetype, serialized_name=f"bwds.{nodetype.__name__}")
    return nodetype
