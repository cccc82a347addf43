"""Checks that refuse a value with a ``ValueError`` of one sentence: the value, the limit and the way out."""

import math
import numbers
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

_ARRAYS = np.generic | np.ndarray | jax.Array
_NUMBERS = {int: (numbers.Integral, "a whole number"), float: (numbers.Real, "a number")}
_OTHERS = {str: "a string", bool: "true or false"}


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def is_array(value: Any) -> bool:
    """Whether a value is an array or scalar of NumPy or JAX; NumPy's float64 is a number of Python."""
    return isinstance(value, _ARRAYS) and not isinstance(value, float)


def python_number(value: Any) -> Any:
    """A scalar of NumPy or JAX as a number of Python; anything else, a traced scalar too, is returned as it is."""
    if not isinstance(value, _ARRAYS) or isinstance(value, jax.core.Tracer) or value.shape != ():
        return value
    # A key of JAX is an array too.
    return value if jnp.issubdtype(value.dtype, jax.dtypes.extended) else value.item()


def shown(value: Any) -> str:
    """A value in one line."""
    value = python_number(value)
    return f"an array of shape {value.shape} and type {value.dtype}" if isinstance(value, _ARRAYS) else repr(value)


def require_number(name: str, value: Any, *, whole: bool = False) -> None:
    """Raises ``ValueError`` unless ``value`` is one real or whole number, of Python, NumPy or JAX, traced or not."""
    value = python_number(value)
    if isinstance(value, jax.core.Tracer):
        kinds = (jnp.integer,) if whole else (jnp.integer, jnp.floating)
        right = value.shape == () and any(jnp.issubdtype(value.dtype, kind) for kind in kinds)
    else:
        right = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    require(right, f"{name} is {shown(value)}; it must be one {'whole ' * whole}number.")


def known_number(name: str, value: Any, *, whole: bool = False) -> Any:
    """The number of ``require_number`` as one of Python; ``ValueError`` also if it is traced."""
    require_number(name, value, whole=whole)
    require(not isinstance(value, jax.core.Tracer), f"{name} is traced; it must be known when the program is compiled.")
    return python_number(value)


def count(name: str, value: Any) -> int:
    """A whole number, at least 1 and not traced, as an int; ``ValueError`` for anything else."""
    number = int(known_number(name, value, whole=True))
    require_at_least(1, **{name: number})
    return number


def pair(name: str, value: Any) -> tuple[int, int]:
    """Two numbers as ``count`` takes them."""
    require(isinstance(value, tuple | list) and len(value) == 2, f"{name} is {shown(value)}; it must be two numbers.")
    return count(f"{name}[0]", value[0]), count(f"{name}[1]", value[1])


def check_sparsity(sparsity: Any) -> None:
    """Raises ``ValueError`` unless ``sparsity``, the fraction of blocks omitted, lies in [0, 1)."""
    number = python_number(sparsity)
    is_number = isinstance(number, numbers.Real) and not isinstance(number, bool)
    require(
        is_number and 0.0 <= number < 1.0,  # pyrefly: ignore[unsupported-operation]
        f"sparsity is {shown(number)}; it is the fraction of blocks omitted and must be at least 0 and less than 1.",
    )


def require_types(config: Any) -> None:
    """Checks the fields of a frozen dataclass by their annotations, and turns their numbers into Python's own.

    A whole number may stand for a float, and a number of NumPy or JAX for one of Python. ``require_choice`` checks the
    fields that are choices.
    """
    for name, annotation in get_type_hints(type(config)).items():
        value = getattr(config, name)
        kinds = {annotation, *get_args(annotation)}
        if value is None and type(None) in kinds:
            continue
        for kind, (accepted, words) in _NUMBERS.items():
            if kind in kinds:
                value = python_number(value)
                is_number = isinstance(value, accepted) and not isinstance(value, bool)
                require(is_number, f"{name} is {shown(value)}; it must be {words}.")
                try:
                    object.__setattr__(config, name, kind(value))
                except OverflowError:
                    raise ValueError(f"{name} is {value}; that is more than a float can hold.") from None
        for kind, words in _OTHERS.items():
            if kind in kinds:
                require(isinstance(value, kind), f"{name} is {shown(value)}; it must be {words}.")


def require_choice(name: str, value: Any, choices: Any) -> None:
    allowed = get_args(choices)
    right = isinstance(value, str) and value in allowed
    require(right, f"{name} is {shown(value)}; it must be one of {', '.join(map(str, allowed))}.")


def require_at_least(minimum: float, **values: float) -> None:
    """Raises ``ValueError`` for a value below ``minimum``, one that is not finite, or a whole number of 2**31 or more.

    Counters and array sizes of 32 bits cannot hold larger whole numbers.
    """
    for name, value in values.items():
        require(minimum <= value, f"{name} is {value}; it must be at least {minimum}.")
        require(value < math.inf, f"{name} is {value}; it must be finite.")
        require(isinstance(value, float) or value < 2**31, f"{name} is {value}; it must be less than 2**31.")


def require_seed(seed: int) -> None:
    require(0 <= seed < 2**32, f"seed is {seed}; it must be at least 0 and less than 2**32: JAX keeps 32 bits of it.")


def require_rates(**values: float | None) -> None:
    for name, value in values.items():
        require(value is None or 0.0 <= value < 1.0, f"{name} is {value}; it must be at least 0 and less than 1.")


def require_gate_options(source: str, rank: Any, normalization: str = "mean", activation: str = "linear") -> None:
    """Raises ``ValueError`` if options of a gate have no meaning together.

    The source "norm" has no projection, so no rank, and its gates are one, so no normalization.
    """
    if source != "norm":
        require_scaling(activation, normalization, "gate_")
        return
    require(
        rank is None, f"gate_rank is {shown(rank)}; a gate_source of 'norm' has no projection: give gate_rank=None."
    )
    require(
        normalization == "mean",
        f"gate_normalization is {normalization!r}; the gates of gate_source 'norm' are one and are never scaled: leave "
        "it at 'mean'.",
    )


def require_scaling(activation: str, normalization: str, prefix: str = "") -> None:
    """Raises ``ValueError`` for "softmax" without normalization: its divisor is part of it."""
    require(
        (activation, normalization) != ("softmax", "none"),
        f"{prefix}normalization is 'none' and {prefix}activation 'softmax'; exponentials have no bound until they are "
        "divided by their sum: take 'mean', or another activation.",
    )


def fitting_sparsities(given: Any, names: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    """Pairs of a matrix's name and its sparsity, in the order of ``names``; ``ValueError`` unless each has one."""
    pairs = given if isinstance(given, tuple | list) else ()
    right = all(isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs)
    found = {name: python_number(sparsity) for name, sparsity in pairs} if right else {}
    require(
        right and found.keys() == set(names) and len(pairs) == len(names),
        f"sparsities are {given!r}; they must be pairs of a name and a sparsity, one for each of {', '.join(names)}.",
    )
    for sparsity in found.values():
        check_sparsity(sparsity)
    return tuple((name, float(found[name])) for name in names)
