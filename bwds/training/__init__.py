"""Training: the loop around the step, and what it writes into the run's folder. Needs the extra ``train``.

``train`` and ``NonFiniteError`` are imported on first use, so that a command line can be parsed without the packages
that training needs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bwds.training.loop import train
    from bwds.training.step import NonFiniteError

__all__ = ["NonFiniteError", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":
        from bwds.training.loop import train

        return train
    if name == "NonFiniteError":
        from bwds.training.step import NonFiniteError

        return NonFiniteError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
