"""Which errors are answered with one sentence, and not with a traceback."""

import dis
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def is_refusal(error: BaseException, main: Callable[..., object] | None = None) -> bool:
    """Whether an error is a ``ValueError`` from a ``raise`` of this project, or of the script or package of ``main``.

    Errors that a library raises, or Python itself within our code, are not written for the user.
    """
    at = error.__traceback__
    if not isinstance(error, ValueError) or at is None:
        return False
    while at.tb_next is not None:
        at = at.tb_next
    raised = at.tb_frame.f_code
    package = _package(at.tb_frame.f_globals)
    ours = package in ("bwds", "pallas_kernels")
    if main is not None:
        beside = Path(raised.co_filename).parent == Path(main.__code__.co_filename).parent
        ours |= beside or package == _package(main.__globals__) != ""
    return ours and dis.opname[raised.co_code[at.tb_lasti]] == "RAISE_VARARGS"


EXTRAS = {
    "train": (
        "tyro", "optax", "orbax", "tqdm", "tensorboardX", "tensorflow_datasets", "array_record", "importlib_resources",
    ),
    "files": ("safetensors", "tokenizers"),
    "export": ("flatbuffers",),
    "plots": ("matplotlib",),
}  # fmt: skip
"""The packages that each extra installs, by import name."""


def missing_extra(error: BaseException) -> str | None:
    """The sentence for a missing module that an extra installs; None for any other error."""
    if not isinstance(error, ModuleNotFoundError):
        return None
    module = (error.name or "").partition(".")[0]
    extra = next((extra for extra, modules in EXTRAS.items() if module in modules), None)
    if extra is None:
        return None
    return (
        f"This needs the Python package {module!r}, which is not installed: it comes with the extra {extra!r}. "
        f'Install it with pip install -e ".[{extra}]" in a clone of the repository; with a wheel, put [{extra}] behind '
        "its name."
    )


def _package(module: dict[str, Any]) -> str:
    """The outermost package of a module, also of one that is run as a script; empty for a file in no package."""
    return (module.get("__package__") or "").partition(".")[0]


def of_the_system(error: OSError) -> str:
    """The message of an error of the system without its number, such as [Errno 13], which tells a user nothing."""
    named = error.filename is not None and error.filename2 is None and error.strerror
    return f"{error.filename}: {error.strerror}." if named else str(error)


def no_platform(error: Exception) -> str | None:
    """The sentence if JAX cannot start on the platforms that JAX_PLATFORMS names; None for any other error."""
    named = os.environ.get("JAX_PLATFORMS")
    if not named or not isinstance(error, RuntimeError | AssertionError):
        return None
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        # The message of a missing backend names another variable or nothing at all.
        return (
            f"JAX_PLATFORMS is {named!r}, and JAX cannot compute on that here. Unset it to let JAX choose, name "
            "another platform, such as cpu, or install JAX for this one."
        )
    return None


def too_little_memory(error: Exception) -> str | None:
    """The sentence for an error that says that there is too little memory; None for any other."""
    # JAX raises no MemoryError where an array does not fit.
    first = (str(error) or type(error).__name__).splitlines()[0]
    if not isinstance(error, MemoryError) and not first.startswith("RESOURCE_EXHAUSTED"):
        return None
    return f"There is not enough memory ({first}). Take a smaller model or batch."
