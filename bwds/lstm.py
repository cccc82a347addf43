"""LSTM layer with two gated (or dense) products a step, one on x_t and one on h_{t-1}, each [H] -> [4H].

    i, f, g, o = split(x_t W_x + h_{t-1} W_h + b)
    c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g);   h_t = sigmoid(o) * tanh(c_t)

The input product does not depend on h and runs once for all time steps. The backward pass of the scan keeps what
each step computed and takes the gradients of the recurrent weights in one product over all steps.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from bwds.array_types import Array, Float
from bwds.budgets import product_sparsity
from bwds.collectives import all_gather_columns, local_columns
from bwds.config import ModelConfig
from bwds.counts import Count, kept_count
from bwds.linear import (
    GateOptions,
    Gating,
    Params,
    apply_linear,
    cast_matrices,
    gate_options,
    init_linear,
    input_cotangents,
    linear,
    parameter_cotangents,
    prepare,
    usage,
)
from bwds.serialization import serializable
from pallas_kernels.explicit_axes import rows_as, spec_of, takes_explicit_axes
from pallas_kernels.mesh_axes import alike, like


@serializable
class LSTMCarry(NamedTuple):
    """State between windows: the output ``h`` and the cell ``c`` of the last step, both float32 [B, H].

    Example:
        ```python
        layer = bwds.nn.LSTM(128, block_size=32, rngs=nnx.Rngs(0))
        carry = bwds.nn.LSTMCarry(h=jnp.zeros((4, 128)), c=jnp.ones((4, 128)))
        y, carry = layer(jnp.ones((4, 10, 128)), carry)
        ```
    """

    h: Float[Array, "B H"]
    c: Float[Array, "B H"]


class _Saved(NamedTuple):
    """Values of every step, [T, ...]: inputs of the recurrent product, decisions of its gate, activations, cells."""

    h: Array
    gating: Gating | None
    activations: Array
    c_before: Array
    tanh_c: Array


def init_lstm(key: Array, config: ModelConfig) -> Params:
    """Parameters of one layer, uniform in ±1/sqrt(H), or in ±``init_bound`` of the configuration.

    Returns:
        {"input", "hidden": linear maps H -> 4H, "bias": [4H]}.
    """
    h, (k, n) = config.hidden_size, config.matrix_shape
    options = gate_options(config)
    keys = jax.random.split(key, 3)
    bound = h**-0.5 if config.init_bound is None else config.init_bound
    make = functools.partial(init_linear, bound=bound, options=options, gate_rank=config.gate_rank)
    return {
        "input": make(keys[0], k, n),
        "hidden": make(keys[1], k, n),
        "bias": jax.random.uniform(keys[2], (n,), jnp.float32, -bound, bound),
    }


def init_lstm_carry(batch: int, config: ModelConfig) -> LSTMCarry:
    """Zeros for ``batch`` streams: two arrays, so that a caller may donate them."""
    shape = (batch, config.hidden_size)
    return LSTMCarry(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


@takes_explicit_axes(
    lambda params, x, carry, *_, **__: (rows_as(x, None), jax.tree.map(spec_of, carry), PartitionSpec())
)
def lstm(
    params: Params, x: Float[Array, "B T H"], carry: LSTMCarry, config: ModelConfig, *, sparsity: Any = None
) -> tuple[Float[Array, "B T H"], LSTMCarry, dict[str, Array]]:
    """Runs one layer over a window.

    Args:
        params: as ``init_lstm`` makes them.
        x: input [B, T, H] in the compute dtype; the outputs have it too.
        carry: state before the window.
        config: the model's.
        sparsity: replaces the configuration's: one number for both products, or {"input": ..., "hidden": ...}; may be
            traced.

    Returns:
        Outputs [B, T, H], the state after the window, and the usage [R, C] of each gated matrix by name.
    """
    options = gate_options(config)
    input_sparsity, hidden_sparsity = (product_sparsity(config, name, sparsity) for name in ("input", "hidden"))
    # One type for all that the scan carries and for the parameters it keeps: see ``alike``.
    x, carry = alike(x, carry)
    # Norms of blocks are computed here, once, and not in each step of the scan.
    params = like({**params, "hidden": prepare(params["hidden"], options)}, x)
    z, input_gating = linear(params["input"], x, options, input_sparsity)
    z = z.swapaxes(0, 1)
    num_kept = None if options is None else kept_count(options.grid, hidden_sparsity, options.scope)
    # A known count is passed as a static argument: traced, even "all blocks" would start a search for the largest.
    known, traced = (num_kept, None) if isinstance(num_kept, int) else (None, num_kept)
    hs, after, hidden_usage = _recurrence(options, known, params["hidden"], params["bias"], traced, z, carry)
    stats = {} if input_gating is None else {"input": usage(input_gating), "hidden": hidden_usage}
    return hs.swapaxes(0, 1), after, stats


def _step(
    params: Params,
    bias: Array,
    num_kept: Count | None,
    options: GateOptions | None,
    carry: LSTMCarry,
    z: Array,
    save: bool = True,
) -> tuple[LSTMCarry, _Saved]:
    h_in = carry.h.astype(z.dtype)
    recurrent, gating = apply_linear(params, h_in, options, num_kept, save=save)
    total = all_gather_columns(z.astype(jnp.float32) + recurrent.astype(jnp.float32) + bias[None, :])
    after, activations, tanh_c = lstm_cell(total, carry.c)
    return after, _Saved(h_in, gating, activations, carry.c, tanh_c)


def lstm_cell(
    total: Float[Array, "B N"], c: Float[Array, "B H"]
) -> tuple[LSTMCarry, Float[Array, "B N"], Float[Array, "B H"]]:
    """The state after a step, from the sum of both products and the bias, and what a backward pass needs.

    Returns:
        The state; i, f, g, o after their activations, side by side; tanh of the new ``c``.
    """
    i, f, g, o = jnp.split(total, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * c + i * g
    tanh_c = jnp.tanh(c)
    return LSTMCarry(o * tanh_c, c), jnp.concatenate([i, f, g, o], -1), tanh_c


def _scan(options, params, bias, num_kept, z, carry, save: bool):
    params = cast_matrices(params, z.dtype)

    def body(carry, z):
        carry, saved = _step(params, bias, num_kept, options, carry, z, save)
        used = None if saved.gating is None else usage(saved.gating)
        return carry, (carry.h.astype(z.dtype), used, saved if save else None)

    after, (hs, used, saved) = lax.scan(body, carry, z)
    return (hs, after, None if used is None else used.mean(0)), saved


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recurrence(options, known, params, bias, num_kept, z, carry):
    """Outputs [T, B, H], carry and usage from the input's share ``z`` [T, B, 4H] of the pre-activations.

    Each device has its own columns of ``z``, the bias and the kernel. The number of kept blocks is ``known``, an int,
    or, if that is None, ``num_kept``.
    """
    return _scan(options, params, bias, num_kept if known is None else known, z, carry, save=False)[0]


def _recurrence_fwd(options, known, params, bias, num_kept, z, carry):
    out, saved = _scan(options, params, bias, num_kept if known is None else known, z, carry, save=True)
    return out, (params, saved)


def _recurrence_bwd(options, known, residuals, cotangents):
    params, saved = residuals
    dhs, dcarry, _ = cotangents
    dtype = saved.h.dtype
    matrices = cast_matrices(params, dtype)

    def body(dcarry, step):
        saved, dh_out = step
        i, f, g, o = jnp.split(saved.activations, 4, axis=-1)
        dh = dcarry.h + dh_out.astype(jnp.float32)
        dc = dcarry.c + dh * o * (1 - saved.tanh_c**2)
        dz = [
            dc * g * i * (1 - i),
            dc * saved.c_before * f * (1 - f),
            dc * i * (1 - g**2),
            dh * saved.tanh_c * o * (1 - o),
        ]
        dz = local_columns(jnp.concatenate(dz, -1), params["kernel"])
        dh_in, dscores = input_cotangents(matrices, saved.h, saved.gating, dz.astype(dtype), options)
        return LSTMCarry(dh_in.astype(jnp.float32), dc * f), (dz, dscores)

    dcarry, (dz, dscores) = lax.scan(body, dcarry, (saved, dhs), reverse=True)
    dparams = parameter_cotangents(params, saved.h, saved.gating, dz.astype(dtype), dscores, options)
    return dparams, dz.sum((0, 1)), None, dz.astype(dtype), dcarry


_recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)
