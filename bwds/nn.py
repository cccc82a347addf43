"""Flax NNX modules: containers of parameters over the functions of this package.

A module's ``nnx.state(module, nnx.Param)``, as a pure dict, is the tree of parameters that the functions take.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from bwds.array_types import Array, Float
from bwds.checks import check_sparsity, require, require_at_least, require_choice
from bwds.config import Activation, Cell, Dtype, Implementation, Method, ModelConfig, Scope
from bwds.linear import GateOptions, Params, init_linear, linear
from bwds.lstm import LSTMCarry, init_lstm, init_lstm_carry, lstm
from bwds.qrnn import QRNNCarry, init_qrnn, init_qrnn_carry, qrnn


def _contain(params: Params) -> nnx.Pytree:
    return nnx.Dict({k: _contain(v) if isinstance(v, dict) else nnx.Param(v) for k, v in params.items()})


def _contents(container: Any) -> Params:
    return {k: _contents(v) if isinstance(v, nnx.Dict) else v[...] for k, v in container.items()}


class BlockSparseLinear(nnx.Module):
    """y = x @ kernel + bias with the kernel's blocks chosen by a gate for every input row.

    Args:
        in_features: K.
        out_features: N.
        sparsity: fraction of blocks omitted, in [0, 1).
        block_shape: rows and columns of a block; divides (K, N).
        gate_rank: rank of the gate's projection; None: a full matrix.
        gate_activation: "linear" (the paper's) or "softplus".
        gate_scope: "matrix" or "column".
        use_bias: add a bias [N], initialised to zero.
        implementation: of the product; None: the platform's own, or else xla, which runs everywhere.
        rngs: its ``params`` stream draws the parameters: kernel and gate uniform in ±1/sqrt(K), the factors of a
            low-rank gate so that scores start at the size of a full one's.

    Raises:
        ValueError: a value is out of range, or the block does not divide the matrix.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        sparsity: float = 0.5,
        block_shape: tuple[int, int] = (128, 128),
        gate_rank: int | None = None,
        gate_activation: Activation = "linear",
        gate_scope: Scope = "matrix",
        use_bias: bool = True,
        implementation: Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        require_at_least(1, in_features=in_features, out_features=out_features)
        check_sparsity(sparsity)
        if gate_rank is not None:
            require_at_least(1, gate_rank=gate_rank)
        require_choice("gate_activation", gate_activation, Activation)
        require_choice("gate_scope", gate_scope, Scope)
        if implementation is not None:
            require_choice("implementation", implementation, Implementation)
        bk, bn = block_shape
        if bk < 1 or bn < 1 or in_features % bk or out_features % bn:
            raise ValueError(
                f"block_shape {block_shape} does not divide a kernel of shape {(in_features, out_features)}; "
                "choose one that does."
            )
        self.sparsity = sparsity
        self.options = GateOptions((in_features // bk, out_features // bn), gate_activation, gate_scope, implementation)
        params = init_linear(
            rngs.params(),
            in_features,
            out_features,
            bound=in_features**-0.5,
            options=self.options,
            gate_rank=gate_rank,
        )
        self.kernel = nnx.Param(params["kernel"])
        self.gate = _contain(params["gate"])
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if use_bias else None

    def __call__(self, x: Float[Array, "*b K"]) -> Float[Array, "*b N"]:
        """y [..., N] in the dtype of ``x`` [..., K]."""
        y, _ = linear({"kernel": self.kernel[...], "gate": _contents(self.gate)}, x, self.options, self.sparsity)
        if self.bias is None:
            return y
        return y + jnp.expand_dims(self.bias[...].astype(y.dtype), tuple(range(y.ndim - 1)))


class _Recurrent(nnx.Module):
    """What LSTM and QRNN share; one layer of width ``hidden_size`` over a window [B, T, H]."""

    _cell: ClassVar[Cell]
    _init: ClassVar[Callable[..., Params]]
    _init_carry: ClassVar[Callable[..., Any]]
    _apply: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        hidden_size: int,
        *,
        method: Method = "dynamic",
        sparsity: float = 0.5,
        block_size: int = 128,
        gate_rank: int | None = None,
        gate_activation: Activation = "linear",
        gate_scope: Scope = "matrix",
        dtype: Dtype = "float32",
        implementation: Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        if method not in ("dynamic", "dense"):
            raise ValueError(f"method is {method!r}; a layer alone is 'dynamic' or 'dense': the others need training.")
        self.config = ModelConfig(
            cell=self._cell,
            hidden_size=hidden_size,
            num_layers=1,
            method=method,
            sparsity=sparsity,
            block_size=block_size,
            gate_rank=gate_rank,
            gate_activation=gate_activation,
            gate_scope=gate_scope,
            dtype=dtype,
            implementation=implementation,
        )
        self.params = _contain(self._init(rngs.params(), self.config))

    def init_carry(self, batch: int) -> Any:
        """State of ``batch`` streams before their first token: zeros, float32 [B, H]."""
        return self._init_carry(batch, self.config)

    def __call__(self, x: Float[Array, "B T H"], carry: Any = None) -> tuple[Float[Array, "B T H"], Any]:
        """Outputs [B, T, H] in the compute dtype and the state after the window; ``carry`` None: zeros.

        Raises:
            ValueError: ``x`` is not [B, T, H] with at least one time step, or ``carry`` is of another batch or width.
        """
        if x.ndim != 3 or x.shape[-1] != self.config.hidden_size or x.shape[1] < 1:
            raise ValueError(
                f"x has shape {x.shape}; it must be [B, T, {self.config.hidden_size}] with at least one time step."
            )
        zeros = self.init_carry(x.shape[0])
        carry = zeros if carry is None else carry
        shapes, wanted = ([a.shape for a in arrays] for arrays in (carry, zeros))
        require(
            shapes == wanted,
            f"carry has shapes {shapes}; x of shape {x.shape} needs {wanted}: make it with init_carry({x.shape[0]}).",
        )
        y, carry, _ = self._apply(_contents(self.params), x.astype(self.config.dtype), carry, self.config)
        return y, carry


class LSTM(_Recurrent):
    """Layer of ``bwds.lstm`` with its parameters. Call it on x [B, T, H] and, if any, an ``LSTMCarry``."""

    _cell = "lstm"
    _init = staticmethod(init_lstm)
    _init_carry = staticmethod(init_lstm_carry)
    _apply = staticmethod(lstm)


class QRNN(_Recurrent):
    """Layer of ``bwds.qrnn`` with its parameters. Call it on x [B, T, H] and, if any, a ``QRNNCarry``."""

    _cell = "qrnn"
    _init = staticmethod(init_qrnn)
    _init_carry = staticmethod(init_qrnn_carry)
    _apply = staticmethod(qrnn)


__all__ = ["LSTM", "QRNN", "BlockSparseLinear", "LSTMCarry", "QRNNCarry"]
