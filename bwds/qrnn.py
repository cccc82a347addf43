"""QRNN layer (Bradbury et al. 2016, arXiv 1611.01576), window 2 and fo-pooling, on one gated (or dense) product.

    z, f, o = split([x_{t-1}; x_t] W + b)                       [2H] -> [3H]
    c_t = sigmoid(f) * c_{t-1} + (1 - sigmoid(f)) * tanh(z);    h_t = sigmoid(o) * c_t

The product runs once for all time steps; only the elementwise pooling is sequential.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from bwds.array_types import Array, Float
from bwds.budgets import product_sparsity
from bwds.collectives import all_gather_columns
from bwds.config import ModelConfig
from bwds.linear import Params, gate_options, init_linear, linear, usage
from bwds.serialization import serializable
from pallas_kernels.explicit_axes import rows_as, spec_of, takes_explicit_axes
from pallas_kernels.mesh_axes import alike


@serializable
class QRNNCarry(NamedTuple):
    """State between windows: the last input ``x`` and the pooled cell ``c``, both float32 [B, H].

    Example:
        ```python
        layer = bwds.nn.QRNN(128, block_size=32, rngs=nnx.Rngs(0))
        carry = bwds.nn.QRNNCarry(x=jnp.zeros((4, 128)), c=jnp.ones((4, 128)))
        y, carry = layer(jnp.ones((4, 10, 128)), carry)
        ```
    """

    x: Float[Array, "B H"]
    c: Float[Array, "B H"]


def init_qrnn(key: Array, config: ModelConfig) -> Params:
    """Parameters of one layer, uniform in ±1/sqrt(H), or in ±``init_bound`` of the configuration.

    Returns:
        {"input": linear map 2H -> 3H, "bias": [3H]}.
    """
    h, (k, n) = config.hidden_size, config.matrix_shape
    options = gate_options(config)
    keys = jax.random.split(key)
    bound = h**-0.5 if config.init_bound is None else config.init_bound
    return {
        "input": init_linear(keys[0], k, n, bound=bound, options=options, gate_rank=config.gate_rank),
        "bias": jax.random.uniform(keys[1], (n,), jnp.float32, -bound, bound),
    }


def init_qrnn_carry(batch: int, config: ModelConfig) -> QRNNCarry:
    """Zeros for ``batch`` streams: two arrays, so that a caller may donate them."""
    shape = (batch, config.hidden_size)
    return QRNNCarry(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def pool(
    forget: Float[Array, "T B H"], candidate: Float[Array, "T B H"], c: Float[Array, "B H"]
) -> Float[Array, "T B H"]:
    """All states of c_t = forget_t * c_{t-1} + (1 - forget_t) * candidate_t, starting from ``c``."""

    def step(c, gates):
        f, z = gates
        c = f * c + (1 - f) * z
        return c, c

    return lax.scan(step, c, (forget, candidate))[1]


@takes_explicit_axes(
    lambda params, x, carry, *_, **__: (rows_as(x, None), jax.tree.map(spec_of, carry), PartitionSpec())
)
def qrnn(
    params: Params, x: Float[Array, "B T H"], carry: QRNNCarry, config: ModelConfig, *, sparsity: Any = None
) -> tuple[Float[Array, "B T H"], QRNNCarry, dict[str, Array]]:
    """Runs one layer over a window.

    Args:
        params: as ``init_qrnn`` makes them.
        x: input [B, T, H] in the compute dtype; the outputs have it too.
        carry: state before the window.
        config: the model's.
        sparsity: replaces the configuration's: a number, or {"input": number}; may be traced.

    Returns:
        Outputs [B, T, H], the state after the window, and the usage [R, C] of each gated matrix by name.
    """
    options = gate_options(config)
    x, carry = alike(x, carry)
    pairs = input_pairs(x, carry)
    total, gating = linear(params["input"], pairs, options, product_sparsity(config, "input", sparsity))
    total = all_gather_columns(total.astype(jnp.float32) + params["bias"][None, None, :])
    y, c = outputs(total, carry.c)
    stats = {} if gating is None else {"input": usage(gating)}
    return y.astype(x.dtype), QRNNCarry(x[:, -1].astype(jnp.float32), c), stats


def input_pairs(x: Float[Array, "B T H"], carry: QRNNCarry) -> Float[Array, "B T K"]:
    """[x_{t-1}; x_t], the input of the product at every step."""
    before = jnp.concatenate([carry.x.astype(x.dtype)[:, None], x[:, :-1]], axis=1)
    return jnp.concatenate([before, x], axis=-1)


def outputs(total: Float[Array, "B T N"], c: Float[Array, "B H"]) -> tuple[Float[Array, "B T H"], Float[Array, "B H"]]:
    """All h_t, float32, and the last state, from the product and the bias."""
    z, f, o = jnp.split(total.swapaxes(0, 1), 3, axis=-1)
    states = pool(jax.nn.sigmoid(f), jnp.tanh(z), c)
    return (jax.nn.sigmoid(o) * states).swapaxes(0, 1), states[-1]
