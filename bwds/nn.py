"""Flax NNX modules: containers of parameters over the functions of this package.

A module's ``nnx.state(module, nnx.Param)``, as a pure dict, is the tree of parameters that the functions take.

Their gates are softplus by default, ``ModelConfig``'s are linear. Linear is the paper's: scores have both signs, so the
sum that gates are divided by can pass zero, near which a layer amplifies whatever comes in; a recipe tuned to it, with
clipped gradients, bears that. Softplus is positive; finite at any sparsity: a gate for networks in which nothing else
is known to hold it. Softmax is for the same networks, with a gate that sets larger scores further apart; ReLU leaves
kept blocks of low scores out. None of them makes the layer at sparsity 0 a dense one, nor does finite mean that it
learns: one language model with softplus gates and all blocks did not.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bwds.arguments import as_array, batch_size, fitting, fitting_state, plain
from bwds.array_types import Array, Float, Real, Whole
from bwds.checks import check_sparsity, count, known_number, pair, require, require_choice, require_gate_options
from bwds.config import Activation, Cell, Dtype, GateSource, Implementation, Method, ModelConfig, Normalization, Scope
from bwds.linear import GateOptions, Params, block_major, cast_matrices, init_linear, linear, prepare, with_norms
from bwds.lstm import LSTMCarry, init_lstm, init_lstm_carry, lstm
from bwds.qrnn import QRNNCarry, init_qrnn, init_qrnn_carry, qrnn


def _contain(params: Params) -> nnx.Pytree:
    return nnx.Dict({k: _contain(v) if isinstance(v, dict) else nnx.Param(v) for k, v in params.items()})


class BlockSparseLinear(nnx.Module):
    """y = x @ kernel + bias with the kernel's blocks chosen by a gate for every input row.

    Args:
        in_features: K.
        out_features: N.
        sparsity: fraction of blocks omitted, in [0, 1).
        block_shape: rows and columns of a block; divides (K, N).
        gate_rank: rank of the gate's projection; None: a full matrix.
        gate_activation: "softplus" or "softmax" (positive; finite at any sparsity), "relu" (finite too; kept blocks of
            low scores count as omitted) or "linear" (the paper's, whose divisor can pass zero: see above and
            ``bwds.topk_gates``).
        gate_normalization: "mean": gates have mean one, those of "relu" at most 1.5; "bounded": linear ones no more
            than ten times what their magnitudes would give; "none": as they are, which "softmax" cannot be.
        gate_scope: "matrix" or "column".
        gate_source: "learned". "norm": scores are ||x_r|| * ||w_rc||_F, kept gates are one, whatever the activation is,
            and there are no parameters but the kernel and the bias. Or a control, as ``bwds.gate_scores`` has them.
        use_bias: add a bias [N], initialised to zero.
        return_gates: a call returns (y, gates), the gates [..., R, C] in float32 with zero for an omitted block.
        implementation: of the product; None: the platform's own, or else xla, which runs everywhere.
        rngs: its ``params`` stream draws the parameters: kernel and gate uniform in ±1/sqrt(K), the factors of a
            low-rank gate so that scores start at the size of a full one's.

    Raises:
        ValueError: a value is out of range, the block does not divide the matrix, "norm" has a rank or a
            normalisation, or "softmax" has none.
    """

    def __init__(
        self,
        in_features: Whole,
        out_features: Whole,
        *,
        sparsity: Real = 0.5,
        block_shape: tuple[Whole, Whole] = (128, 128),
        gate_rank: Whole | None = None,
        gate_activation: Activation = "softplus",
        gate_normalization: Normalization = "mean",
        gate_scope: Scope = "matrix",
        gate_source: GateSource = "learned",
        use_bias: bool = True,
        return_gates: bool = False,
        implementation: Implementation | None = None,
        rngs: nnx.Rngs,
    ):
        in_features, out_features = count("in_features", in_features), count("out_features", out_features)
        check_sparsity(sparsity)
        if gate_rank is not None:
            gate_rank = count("gate_rank", gate_rank)
        require_choice("gate_activation", gate_activation, Activation)
        require_choice("gate_normalization", gate_normalization, Normalization)
        require_choice("gate_scope", gate_scope, Scope)
        require_choice("gate_source", gate_source, GateSource)
        require_gate_options(gate_source, gate_rank, gate_normalization, gate_activation)
        if implementation is not None:
            require_choice("implementation", implementation, Implementation)
        bk, bn = pair("block_shape", block_shape)
        if in_features % bk or out_features % bn:
            raise ValueError(
                f"block_shape {(bk, bn)} does not divide a kernel of shape {(in_features, out_features)}; "
                "choose one that does."
            )
        self.sparsity = float(known_number("sparsity", sparsity))
        self.block_shape = (bk, bn)
        self.return_gates = return_gates
        grid = (in_features // bk, out_features // bn)
        self.options = GateOptions(
            grid, gate_activation, gate_scope, implementation, gate_source, normalization=gate_normalization
        )
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

    @classmethod
    def from_linear(
        cls,
        dense: nnx.Linear,
        *,
        sparsity: Real = 0.5,
        block_shape: tuple[Whole, Whole] = (128, 128),
        gate_scope: Scope = "matrix",
        return_gates: bool = False,
        implementation: Implementation | None = None,
    ) -> "BlockSparseLinear":
        """The layer with the kernel and the bias of a dense one, and the gate source "norm": nothing to be trained.

            layer = BlockSparseLinear.from_linear(network.output, sparsity=0.5)

        At sparsity 0 it computes what the dense layer does. The arrays are shared until one is replaced. The other
        arguments are those of the class.

        Args:
            dense: of float32 parameters, with a bias or without; its ``dtype`` and ``precision`` do not count.

        Raises:
            ValueError: ``dense`` is no ``nnx.Linear``, its parameters are not float32, or an option is out of range.
        """
        require(isinstance(dense, nnx.Linear), f"dense is a {type(dense).__name__}; it must be a flax.nnx.Linear.")
        kernel, bias = dense.kernel[...], None if dense.bias is None else dense.bias[...]
        is_float32 = all(array is None or array.dtype == jnp.float32 for array in (kernel, bias))
        require(is_float32, f"the kernel is of {kernel.dtype}; parameters must be float32: convert them first.")
        make = functools.partial(cls, *kernel.shape, sparsity=sparsity, block_shape=block_shape, gate_scope=gate_scope)
        make = functools.partial(make, gate_source="norm", return_gates=return_gates, implementation=implementation)
        # Shapes alone: initial values would be thrown away.
        layer = nnx.eval_shape(lambda: make(use_bias=bias is not None, rngs=nnx.Rngs(0)))
        layer.kernel = nnx.Param(kernel)
        layer.bias = None if bias is None else nnx.Param(bias)
        return layer

    def __call__(
        self, x: Float[Array, "*b K"]
    ) -> Float[Array, "*b N"] | tuple[Float[Array, "*b N"], Float[Array, "*b R C"]]:
        """y [..., N] in the dtype of ``x`` [..., K], and with ``return_gates`` the gates [..., R, C].

        Raises:
            ValueError: ``x`` is no array [..., K] of float32 or bfloat16, or parameters put here have other shapes.
        """
        x, kernel, (r, c), (bk, bn) = as_array("x", x), self.kernel[...], self.options.grid, self.block_shape
        require(
            x.ndim >= 1 and x.shape[-1] == r * bk and x.dtype in (jnp.float32, jnp.bfloat16),
            f"x has shape {x.shape} and dtype {x.dtype}; it must be [..., {r * bk}], float32 or bfloat16.",
        )
        require(
            kernel.shape in ((r * bk, c * bn), (c, r, bk, bn)),
            f"kernel has shape {kernel.shape}; this layer, of {r} x {c} blocks of {bk} x {bn}, has {(r * bk, c * bn)}.",
        )
        y, gating = linear({"kernel": kernel, "gate": plain("gate", self.gate)}, x, self.options, self.sparsity)
        if self.bias is not None:
            y += jnp.expand_dims(self.bias[...].astype(y.dtype), tuple(range(y.ndim - 1)))
        return (y, gating.gates) if self.return_gates and gating is not None else y

    def for_decoding(self) -> "BlockSparseLinear":
        """A copy whose kernel is block-major, [C, R, K/R, N/C], so that a kept block is one contiguous read.

        Laid out once, here, for products of few rows on a CPU. It gives the same results and gradients, the kernel's in
        its own layout, and splits, merges and loads as any module does, with a state of its own shape.
        Later changes to this module are not changes to the copy. The copy of a copy is equal to it. With the gate
        source "norm" it holds the norms of its blocks, which do not follow a change of its kernel: train the original.
        """
        copy = nnx.clone(self)
        params = prepare({"kernel": self.kernel[...], "gate": plain("gate", self.gate)}, self.options)
        copy.kernel = nnx.Param(block_major(params, self.block_shape)["kernel"])
        copy.gate = _contain(params["gate"])
        return copy


class Outputs(NamedTuple):
    """What a recurrent layer returns: y, carry = layer(x). By name, since ``nnx.tabulate`` shows no carry in a tuple.

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
        self.params = _contain(self._init(rngs.params(), self.config))

    def init_carry(self, batch: Any) -> Any:
        """State of ``batch`` streams before their first token: zeros, float32 [B, H].

        Raises:
            ValueError: ``batch`` is no whole number, or negative.
        """
        return self._init_carry(batch_size(batch, minimum=0), self.config)

    def __call__(self, x: Float[Array, "B T H"], carry: Any = None) -> Outputs:
        """Outputs [B, T, H] in the compute dtype and the state after the window; ``carry`` None: zeros.

        For ``nnx.tabulate`` give a carry by its name, ``carry=``: Flax cannot show one among positional arguments.

        Raises:
            ValueError: ``x`` is not [B, T, H] with at least one time step, ``carry`` is of another batch, width or
                type, or parameters put here have other shapes.
        """
        x, config = as_array("x", x), self.config
        if x.ndim != 3 or x.shape[-1] != config.hidden_size or x.shape[1] < 1:
            raise ValueError(
                f"x has shape {x.shape}; it must be [B, T, {config.hidden_size}] with at least one time step."
            )
        # Not by ``init_carry``: under ``nnx.tabulate`` a public method called by another gets a traced number.
        zeros = self._init_carry(x.shape[0], config)
        carry = zeros if carry is None else fitting_state("carry", carry, zeros)
        params = fitting(self.params, _layer_shapes(self._init, config), config)
        y, carry, _ = self._apply(params, x.astype(config.dtype), carry, config)
        return Outputs(y, carry)

    def for_decoding(self) -> Any:
        """A copy laid out for decoding: gated kernels block-major, matrices in the compute dtype.

        What ``bwds.decode_params`` does for a model. With dtype float32 results and gradients are the same, the
        kernels' in their own layout; with bfloat16 results are, and gradients are rounded to it: train the original. So
        with the gate source "norm", whose norms are taken here and do not follow a change of a kernel.
        It splits, merges and loads as any module does, with a state of its own shapes. Later changes to this module are
        not changes to the copy. The copy of a copy is equal to it.
        """
        copy = nnx.clone(self)
        params = plain("params", self.params)
        if self.config.gate_source == "norm":
            params = with_norms(params, self.config.block_shape)
        params = cast_matrices(params, jnp.dtype(self.config.dtype))
        copy.params = _contain(block_major(params, self.config.block_shape))
        return copy


@functools.lru_cache(maxsize=64)
def _layer_shapes(init: Callable[..., Params], config: ModelConfig) -> Params:
    return jax.eval_shape(lambda seed: init(jax.random.key(seed), config), 0)


class LSTM(_Recurrent):
    """Layer of ``bwds.lstm`` with its parameters. Call it on x [B, T, H] and, if any, an ``LSTMCarry``.

    Options are those of ``bwds.ModelConfig``, but for the softplus gates.
    """

    _cell = "lstm"
    _init = staticmethod(init_lstm)
    _init_carry = staticmethod(init_lstm_carry)
    _apply = staticmethod(lstm)


class QRNN(_Recurrent):
    """Layer of ``bwds.qrnn`` with its parameters. Call it on x [B, T, H] and, if any, a ``QRNNCarry``.

    Options are those of ``bwds.ModelConfig``, but for the softplus gates.
    """

    _cell = "qrnn"
    _init = staticmethod(init_qrnn)
    _init_carry = staticmethod(init_qrnn_carry)
    _apply = staticmethod(qrnn)


__all__ = ["LSTM", "QRNN", "BlockSparseLinear", "LSTMCarry", "QRNNCarry"]
