"""Measured bounds: how fast this device copies, and how fast it multiplies."""

from typing import Any

import jax
import jax.numpy as jnp

from bwds.timing import time_in_turns


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes a second of a large update in place, read and written."""
    x = jnp.zeros((megabytes * 2**18,), jnp.float32)
    bytes_moved = 2 * x.nbytes
    update = jax.jit(lambda x: x + 1.0, donate_argnums=0)

    def call():
        nonlocal x
        x = update(x)
        return x

    return bytes_moved / time_in_turns({"copy": call}, turns=7)["copy"].median


def matmul_rate(dtype: Any = jnp.float32, size: int | None = None) -> float:
    """Floating-point operations a second of a square product, two for a multiply-add.

    Args:
        dtype: of the matrices.
        size: rows and columns; None: 2048 on a CPU, 8192 elsewhere, as less would not fill a chip.
    """
    if size is None:
        size = 2048 if jax.default_backend() == "cpu" else 8192
    # Random entries: a chip draws less power on matrices of ones, and may run faster.
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / time_in_turns({"product": lambda: product(x)}, turns=7)["product"].median
