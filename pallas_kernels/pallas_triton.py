"""Pallas Triton, as every kernel for NVIDIA GPUs here imports it: ``pl`` and ``pltriton``."""

import warnings

from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

__all__ = ["pl", "pltriton"]

# jax 0.11 announced the end of this backend, and says so at every lowering: in the caller's jit, out of reach of a
# context manager here. Nobody who only uses these kernels can act on it.
warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
