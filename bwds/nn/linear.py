"""One linear layer whose blocks are chosen by a gate."""

import functools

import jax.numpy as jnp
from flax import nnx

from bwds.arguments import as_array, plain
from bwds.array_types import Array, Float, Real, Whole
from bwds.checks import check_sparsity, count, known_number, pair, require, require_choice, require_gate_options
from bwds.config import Activation, GateSource, Implementation, Normalization, Scope
from bwds.linear import GateOptions, Params, decoding_layout, init_linear, linear, prepare


def contain(params: Params) -> nnx.Pytree:
    """Nested dicts of arrays, the parameters of a function, as a module's tree of ``nnx.Param``."""
    return nnx.Dict({k: contain(v) if isinstance(v, dict) else nnx.Param(v) for k, v in params.items()})


class BlockSparseLinear(nnx.Module):
    """y = x @ kernel + bias, where a gate chooses the blocks of the kernel for every input row (arXiv 2001.04686).

        y[c] = sum over kept (r, c) of gates[r, c] * x[r] @ kernel[r, c] + bias[c]

    Example:
        ```python
        layer = bwds.nn.BlockSparseLinear(256, 512, sparsity=0.75, block_shape=(64, 64), rngs=nnx.Rngs(0))
        x = jax.random.normal(jax.random.key(0), (3, 256))
        y = layer(x)                                                            # [3, 512]
        y = layer.for_decoding()(x)                                             # the same, fast for a few rows
        ```

    Args:
        in_features: K.
        out_features: N.
        sparsity: fraction of blocks omitted, in [0, 1).
        block_shape: rows and columns of a block; divides (K, N).
        gate_rank: rank of the gate's projection; None: a full matrix.
        gate_activation: "softplus" or "softmax" (positive; finite at any sparsity), "relu" (finite too; can give a kept
            block of a low score a gate of zero, which omits it) or "linear" (the paper's, whose divisor can pass zero:
            see ``bwds.nn`` and ``bwds.topk_gates``).
        gate_normalization: "mean": gates have mean one, those of "relu" at most 1.5. "bounded": as "mean", but a linear
            gate is divided by at least a tenth of the sum of magnitudes. "none": not divided; not for "softmax".
        gate_scope: "matrix": blocks compete over the whole matrix; "column": within their block column.
        gate_source: "learned". "norm": scores are ||x_r|| * ||w_rc||_F, kept gates are one for every activation, and
            the only parameters are the kernel and the bias. Or a control of ``bwds.gate_scores``.
        use_bias: add a bias [N], initialised to zero.
        return_gates: a call returns (y, gates), the gates [..., R, C] in float32 with zero for an omitted block.
        implementation: kernel of the product; None: the platform's own, or else xla, which runs everywhere.
        rngs: its ``params`` stream draws the parameters, float32: kernel and gate uniform in ±1/sqrt(K), the factors of
            a low-rank gate so that scores start at the size of a full gate's.

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
        self.gate = contain(params["gate"])
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
        """The layer with the kernel and the bias of a dense one, and the gate source "norm": it needs no training.

        Example:
            ```python
            dense = nnx.Linear(256, 512, rngs=nnx.Rngs(0))
            layer = bwds.nn.BlockSparseLinear.from_linear(dense, sparsity=0.5, block_shape=(64, 64))
            ```

        At sparsity 0 it computes what the dense layer does. The two layers share their arrays until one is replaced.

        Args:
            dense: a layer of float32 parameters, with a bias or without; its ``dtype`` and ``precision`` do not count.
            sparsity: as for the class.
            block_shape: as for the class.
            gate_scope: as for the class.
            return_gates: as for the class.
            implementation: as for the class.

        Raises:
            ValueError: ``dense`` is no ``nnx.Linear``, its parameters are not float32, or an option is out of range.
        """
        # A subclass that computes something else, as nnx.LoRALinear does, would lose that.
        plain_linear = isinstance(dense, nnx.Linear) and type(dense).__call__ is nnx.Linear.__call__
        require(plain_linear, f"dense is a {type(dense).__name__}; it must be a flax.nnx.Linear.")
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

        It is for products of few rows. On a CPU, a kernel of small blocks of which many are kept stays as it is. The
        copy gives the same results and gradients up to rounding; the kernel's gradient has the copy's layout. It
        splits, merges and loads as any module does, with a state of its own shape. Later changes to this module do not
        change the copy. A copy of the copy is equal to it. With the gate source "norm" the copy holds the norms of its
        blocks, which do not follow a change of its kernel: train the original.
        """
        copy = nnx.clone(self)
        params = prepare({"kernel": self.kernel[...], "gate": plain("gate", self.gate)}, self.options)
        copy.kernel = nnx.Param(decoding_layout(params, self.block_shape, self.sparsity)["kernel"])
        copy.gate = contain(params["gate"])
        return copy
