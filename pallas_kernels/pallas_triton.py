"""Pallas and its Triton backend, ``pl`` and ``pltriton``, for every kernel for NVIDIA GPUs in this package."""

import warnings

from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

__all__ = ["pl", "pltriton"]

# jax 0.11 deprecated this backend and warns at every lowering. That happens in the caller's jit, out of reach of a
# context manager here, and someone who only uses these kernels can do nothing about it.
warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
