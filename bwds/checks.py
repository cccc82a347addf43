"""Refusals of values in one sentence, as ``ValueError``."""

import math
from typing import Any, get_args


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def require_choice(name: str, value: Any, choices: Any) -> None:
    allowed = get_args(choices)
    require(value in allowed, f"{name} is {value!r}; it must be one of {', '.join(map(str, allowed))}.")


def require_at_least(minimum: float, **values: float) -> None:
    for name, value in values.items():
        require(
            not math.isnan(value) and value >= minimum,
            f"{name} is {value}; it must be at least {minimum}.",
        )


def require_rates(**values: float | None) -> None:
    for name, value in values.items():
        require(value is None or 0.0 <= value < 1.0, f"{name} is {value}; it must be at least 0 and less than 1.")
