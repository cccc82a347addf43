"""Refusals of values in one sentence, as ``ValueError``."""

import math
import numbers
from typing import Any, get_args, get_type_hints

_NUMBERS = {int: (numbers.Integral, "a whole number"), float: (numbers.Real, "a number")}
_OTHERS = {str: "a string", bool: "true or false"}


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def require_types(config: Any) -> None:
    """Checks the fields of a frozen dataclass by their annotations, and makes their numbers Python's own.

    A whole number may stand for a float, and NumPy's numbers for Python's. Choices are left to ``require_choice``.
    """
    for name, annotation in get_type_hints(type(config)).items():
        value = getattr(config, name)
        kinds = {annotation, *get_args(annotation)}
        if value is None and type(None) in kinds:
            continue
        for kind, (accepted, words) in _NUMBERS.items():
            if kind in kinds:
                is_number = isinstance(value, accepted) and not isinstance(value, bool)
                require(is_number, f"{name} is {value!r}; it must be {words}.")
                try:
                    object.__setattr__(config, name, kind(value))
                except OverflowError:
                    raise ValueError(f"{name} is {value}; that is more than a float can hold.") from None
        for kind, words in _OTHERS.items():
            if kind in kinds:
                require(isinstance(value, kind), f"{name} is {value!r}; it must be {words}.")


def require_choice(name: str, value: Any, choices: Any) -> None:
    allowed = get_args(choices)
    require(value in allowed, f"{name} is {value!r}; it must be one of {', '.join(map(str, allowed))}.")


def require_at_least(minimum: float, **values: float) -> None:
    """Also refuses what is not finite, and whole numbers that a 32-bit counter or array size cannot hold."""
    for name, value in values.items():
        require(minimum <= value, f"{name} is {value}; it must be at least {minimum}.")
        require(value < math.inf, f"{name} is {value}; it must be finite.")
        require(isinstance(value, float) or value < 2**31, f"{name} is {value}; it must be less than 2**31.")


def require_seed(seed: int) -> None:
    require(0 <= seed < 2**32, f"seed is {seed}; it must be at least 0 and less than 2**32: JAX keeps 32 bits of it.")


def require_rates(**values: float | None) -> None:
    for name, value in values.items():
        require(value is None or 0.0 <= value < 1.0, f"{name} is {value}; it must be at least 0 and less than 1.")


def check_sparsity(sparsity: float) -> None:
    """Raises ``ValueError`` unless ``sparsity``, the fraction of blocks omitted, lies in [0, 1)."""
    require(
        isinstance(sparsity, numbers.Real) and not isinstance(sparsity, bool) and 0.0 <= sparsity < 1.0,
        f"sparsity is {sparsity}; it is the fraction of blocks omitted and must be at least 0 and less than 1.",
    )
