"""One vocabulary of dimension letters for every annotation in the package.

    B  batch                    T  time steps
    K  input features           N  output features
    R  row blocks of a weight   C  column blocks of a weight
    H  hidden size              V  vocabulary size

``*b`` stands for any number of leading dimensions.
"""

from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Integer, Key

Whole = int | np.integer | Integer[Any, ""]
"""One whole number, of Python, NumPy or JAX."""
Real = float | np.number | Float[Any, ""] | Integer[Any, ""]
"""One number, of Python, NumPy or JAX."""

__all__ = ["Array", "Bool", "Float", "Float32", "Int", "Int32", "Integer", "Key", "Real", "Whole"]
