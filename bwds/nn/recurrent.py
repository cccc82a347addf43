"""Recurrent layers."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bwds.arguments import as_array, batch_size, fitting, fitting_state, plain
from bwds.array_types import Array, Float, Real, Whole
from bwds.checks import known_number
from bwds.config import Activation, Cell, Dtype, GateSource, Implementation, Method, ModelConfig, Normalization, Scope
from bwds.linear import Params, cast_matrices, decoding_layout, with_norms
from bwds.lstm import init_lstm, init_lstm_carry, lstm
from bwds.nn.linear import contain
from bwds.qrnn import init_qrnn, init_qrnn_carry, qrnn


class Outputs(NamedTuple):
    """What a recurrent layer returns: y, carry = layer(x). ``nnx.tabulate`` shows a carry only if it has a name.

    Example:
        ```python
        layer = bwds.nn.LSTM(128, block_size=32, rngs=nnx.Rngs(0))
        outputs = layer(jnp.ones((4, 10, 128)))
        print(outputs.y.shape, outputs.carry.h.shape)                           # (4, 10, 128) (4, 128)
        ```

    Attributes:
        y: outputs [B, T, H] in the compute dtype.
        carry: the state after the window, ``LSTMCarry`` or ``QRNNCarry``.
    """

    y: Float[Array, "B T H"]
    carry: Any


class _Recurrent(nnx.Module):
    """What LSTM and QRNN share; one layer of width ``hidden_size`` over a window [B, T, H]."""

    _cell: ClassVar[Cell]
    _init: ClassVar[Callable[..., Params]]
    _init_carry: ClassVar[Callable[..., Any]]
    _apply: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        hidden_size: Whole,
        *,
        method: Method = "dynamic",
        sparsity: Real = 0.5,
        block_size: Whole = 128,
        gate_rank: Whole | None = None,
        gate_activation: Activation = "softplus",
        gate_normalization: Normalization = "mean",
        gate_scope: Scope = "matrix",
        gate_source: GateSource = "learned",
        dtype: Dtype = "float32",
        implementation: Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        if method not in ("dynamic", "dense"):
            raise ValueError(f"method is {method!r}; a layer alone is 'dynamic' or 'dense': the others need training.")
        options: dict[str, Any] = {"hidden_size": hidden_size, "sparsity": sparsity, "block_size": block_size}
        self.config = ModelConfig(
            cell=self._cell,
            num_layers=1,
            method=method,
            gate_rank=None if gate_rank is None else known_number("gate_rank", gate_rank, whole=True),
            gate_activation=gate_activation,
            gate_normalization=gate_normalization,
            gate_scope=gate_scope,
            gate_source=gate_source,
            dtype=dtype,
            implementation=implementation,
            **{name: known_number(name, value) for name, value in options.items()},
        )
        self.params = contain(self._init(rngs.params(), self.config))

    def init_carry(self, batch: Any) -> Any:
        """State of ``batch`` streams before their first token: zeros, float32 [B, H].

        Raises:
            ValueError: ``batch`` is no whole number, negative, or 2**31 or more.
        """
        return self._init_carry(batch_size(batch, minimum=0), self.config)

    def __call__(self, x: Float[Array, "B T H"], carry: Any = None) -> Outputs:
        """Outputs [B, T, H] in the compute dtype and the state after the window; ``carry`` None: zeros.

        For ``nnx.tabulate`` pass a carry as ``carry=``: Flax cannot show one among positional arguments.

        Raises:
            ValueError: ``x`` is not [B, T, H] with at least one time step, ``carry`` is of another batch, width or
                type, or parameters put here have other shapes.
        """
        x, config = as_array("x", x), self.config
        if x.ndim != 3 or x.shape[-1] != config.hidden_size or x.shape[1] < 1:
            raise ValueError(
                f"x has shape {x.shape}; it must be [B, T, {config.hidden_size}] with at least one time step."
            )
        # Not by ``init_carry``, because under ``nnx.tabulate`` a public method that another calls gets traced numbers.
        zeros = self._init_carry(x.shape[0], config)
        carry = zeros if carry is None else fitting_state("carry", carry, zeros)
        params = fitting(self.params, _layer_shapes(self._init, config), config)
        y, carry, _ = self._apply(params, x.astype(config.dtype), carry, config)
        return Outputs(y, carry)

    def for_decoding(self) -> Any:
        """A copy laid out for decoding: gated kernels block-major, matrices in the compute dtype.

        It does for a layer what ``bwds.decode_params`` does for a model. Results are the same up to rounding, and with
        dtype float32 so are gradients; those of kernels have the copy's layout. Train the original: with bfloat16 the
        copy's gradients are rounded to bfloat16, and with the gate source "norm" its norms do not follow a change of a
        kernel. It splits, merges and loads as any module does, with a state of its own shapes. Later changes to this
        module do not change the copy. A copy of the copy is equal to it.
        """
        copy = nnx.clone(self)
        params = plain("params", self.params)
        if self.config.gate_source == "norm":
            params = with_norms(params, self.config.block_shape)
        params = cast_matrices(params, jnp.dtype(self.config.dtype))
        copy.params = contain(decoding_layout(params, self.config.block_shape, self.config.sparsity))
        return copy


@functools.lru_cache(maxsize=64)
def _layer_shapes(init: Callable[..., Params], config: ModelConfig) -> Params:
    return jax.eval_shape(lambda seed: init(jax.random.key(seed), config), 0)


class LSTM(_Recurrent):
    """An LSTM layer with its parameters. Call it on x [B, T, H] and, if any, an ``LSTMCarry``.

        i, f, g, o = split(x_t W_x + h_{t-1} W_h + b)
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)        h_t = sigmoid(o) * tanh(c_t)

    Each of the two products has a gate of its own. Options are those of ``bwds.ModelConfig``, but gates are softplus by
    default. It returns ``Outputs``.

    Example:
        ```python
        layer = bwds.nn.LSTM(128, sparsity=0.5, block_size=32, rngs=nnx.Rngs(0))
        x = jax.random.normal(jax.random.key(0), (4, 10, 128))
        y, carry = layer(x)                                                     # y [4, 10, 128]
        y, carry = layer(x, carry)                                              # the next window
        ```

    Args:
        hidden_size: H, of inputs and outputs.
        method: "dynamic" or "dense".
        sparsity: fraction of blocks omitted, in [0, 1).
        block_size: rows and columns of a block; divides H.
        gate_rank: rank of the gates' projections; None: full matrices.
        gate_activation: as for ``BlockSparseLinear``.
        gate_normalization: as for ``BlockSparseLinear``.
        gate_scope: as for ``BlockSparseLinear``.
        gate_source: as for ``BlockSparseLinear``.
        dtype: of the products, "float32" or "bfloat16"; parameters and carries are float32.
        implementation: kernel of the products; None: the platform's own, or else xla, which runs everywhere.
        rngs: its ``params`` stream draws the parameters, float32, uniform in ±1/sqrt(H).

    Raises:
        ValueError: an option is out of range, or options have no meaning together.
    """

    _cell = "lstm"
    _init = staticmethod(init_lstm)
    _init_carry = staticmethod(init_lstm_carry)
    _apply = staticmethod(lstm)


class QRNN(_Recurrent):
    """A QRNN layer (arXiv 1611.01576) with its parameters. Call it on x [B, T, H] and, if any, a ``QRNNCarry``.

        z, f, o = split([x_{t-1}; x_t] W + b)
        c_t = sigmoid(f) * c_{t-1} + (1 - sigmoid(f)) * tanh(z)        h_t = sigmoid(o) * c_t

    Arguments and errors are those of ``LSTM``. It returns ``Outputs``.

    Example:
        ```python
        layer = bwds.nn.QRNN(128, sparsity=0.5, block_size=32, rngs=nnx.Rngs(0))
        x = jax.random.normal(jax.random.key(0), (4, 10, 128))
        y, carry = layer(x)                                                     # y [4, 10, 128]
        y, carry = layer(x, carry)                                              # the next window
        ```
    """

    _cell = "qrnn"
    _init = staticmethod(init_qrnn)
    _init_carry = staticmethod(init_qrnn_carry)
    _apply = staticmethod(qrnn)
