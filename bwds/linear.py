"""A linear map, dense or gated: the one place where a gate meets its matrix.

Parameters are a dict: {"kernel": [K, N]} and, if gated, {"gate": parameters of its scores}. The kernel may also be
block-major, as ``decode_params`` lays it out. There is no bias: recurrent layers add one for all their products. A gate
of the source "norm" has no parameters, but the norms of the kernel's blocks, computed once, may stand in its place.

If the columns of the kernel are spread over devices (``bwds.collectives``), each device has whole block columns. Scores
and choice are those of the whole matrix, the same on all devices; the result has the columns of this device.

``linear`` can be differentiated as it stands. A recurrence should not do that, because it would add the gradient of the
kernel into a dense [K, N] buffer at every time step. It calls ``input_cotangents`` at each step instead, and
``parameter_cotangents`` once, over the rows of all steps.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bwds.array_types import Array, Bool, Float
from bwds.collectives import MODEL, all_gather_columns, global_shape, local_columns, psum
from bwds.config import Activation, GateSource, ModelConfig, Normalization, Scope
from bwds.counts import Count, kept_count
from bwds.gating import gate_scores, init_gate, score_terms
from bwds.norms import block_norms
from bwds.selection import gate_values, select_blocks
from pallas_kernels import (
    block_sparse_input_gradients,
    block_sparse_matmul,
    block_sparse_weight_gradient,
    dense,
    to_block_major,
)
from pallas_kernels.block_sparse.xla import pays_to_skip
from pallas_kernels.explicit_axes import rows_as, takes_explicit_axes
from pallas_kernels.gated.api import fuses, gated_matmul
from pallas_kernels.mesh_axes import alike, axes_of

Params = dict[str, Any]


class GateOptions(NamedTuple):
    """The static options of the gate of one matrix. ``grid`` is (R, C)."""

    grid: tuple[int, int]
    activation: Activation = "linear"
    scope: Scope = "matrix"
    implementation: str | None = None
    source: GateSource = "learned"
    normalization: Normalization = "mean"

    def values(self, scores: Float[Array, "*b R C"], kept: Bool[Array, "*b R C"]) -> Float[Array, "*b R C"]:
        """``gate_values`` with these options; with the source "norm" kept gates are one."""
        if self.source == "norm":
            return kept.astype(scores.dtype)
        return gate_values(scores, kept, activation=self.activation, normalization=self.normalization)


class Gating(NamedTuple):
    """What the gate of a product decided, for its backward pass and for usage statistics.

    Scores and mask are None if the gates are one or zero, or if there is no backward pass.
    """

    scores: Float[Array, "*b R C"] | None
    kept: Bool[Array, "*b R C"] | None
    gates: Float[Array, "*b R C"]


def gate_options(config: ModelConfig) -> GateOptions | None:
    """Options of the gates of a model's matrices; None if it has none."""
    if config.method != "dynamic":
        return None
    k, n = config.matrix_shape
    return GateOptions(
        (k // config.block_size, n // config.block_size),
        config.gate_activation,
        config.gate_scope,
        config.implementation,
        config.gate_source,
        config.gate_normalization,
    )


def init_linear(
    key: Array, num_features: int, num_outputs: int, *, bound: float, options: GateOptions | None, gate_rank: int | None
) -> Params:
    """Kernel [K, N] uniform in ±bound and, unless ``options`` is None, its gate, all float32."""
    kernel_key, gate_key = jax.random.split(key)
    params: Params = {"kernel": jax.random.uniform(kernel_key, (num_features, num_outputs), jnp.float32, -bound, bound)}
    if options is not None:
        r, c = options.grid
        params["gate"] = init_gate(gate_key, num_features, r * c, gate_rank, options.source)
    return params


def cast_matrices(params: Params, dtype: Any) -> Params:
    """The parameters, one map's or a whole model's, with matrices in ``dtype``; biases and norms stay in float32.

    A loop should get its weights already cast, because XLA does not move a cast out of the loop.
    """
    return {
        name: cast_matrices(value, dtype)
        if isinstance(value, dict)
        else (value if name in ("bias", "norms") else value.astype(dtype))
        for name, value in params.items()
    }


def decoding_layout(params: Params, block_shape: tuple[int, int], sparsity: float) -> Params:
    """The parameters, one map's or a whole model's, with gated kernels as decoding at ``sparsity`` reads them fastest.

    They become block-major, so that a kept block is one contiguous read; kernels that already are stay as they are. If
    blocks are small and many are kept, a CPU computes all blocks, and reads a row-major kernel for that.
    """

    def lay_out(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return decoding_layout(value, block_shape, sparsity)
        if name != "kernel" or "gate" not in params or value.ndim != 2:
            return value
        skips = jax.default_backend() != "cpu" or pays_to_skip(1.0 - sparsity, block_shape, value.dtype)
        return to_block_major(value, block_shape) if skips else value

    return {name: lay_out(name, value) for name, value in params.items()}


def with_norms(params: Params, block_shape: tuple[int, int]) -> Params:
    """The parameters, one map's or a whole model's, with norms as the gates of gated kernels; for the source "norm".

    They are computed of the kernels before these are rounded to a compute dtype. Norms that are there already stay.
    """

    def visit(name: str, value: Any) -> Any:
        if name == "gate" and not value:
            return {"norms": block_norms(params["kernel"], block_shape)}
        return with_norms(value, block_shape) if isinstance(value, dict) else value

    return {name: visit(name, value) for name, value in params.items()}


def without_norms(params: Params) -> Params:
    """One map's parameters without norms, for a kernel that will change: its norms must be computed again."""
    return {**params, "gate": {}} if "norms" in params.get("gate", {}) else params


def prepare(params: Params, options: GateOptions | None) -> Params:
    """One map's parameters with the norms that ``apply_linear`` needs; a loop over steps calls this once before it.

    It need not be differentiated: norms have no gradient.
    """
    if options is None or options.source != "norm":
        return params
    kernel, (r, c) = params["kernel"], options.grid
    whole = kernel.ndim == 2
    return with_norms(params, (kernel.shape[0] // r, global_shape(kernel)[1] // c) if whole else kernel.shape[2:])


@takes_explicit_axes(lambda params, x, *_, **__: (rows_as(x, None), rows_as(x, None, None)))
def linear(
    params: Params, x: Float[Array, "*b K"], options: GateOptions | None, sparsity: Any = 0.0
) -> tuple[Float[Array, "*b N"], Gating | None]:
    """x @ kernel, or its gated form; float32 accumulation, result in the dtype of ``x``.

    Args:
        params: as ``init_linear`` makes them.
        x: input [..., K].
        options: None for the dense product.
        sparsity: fraction of blocks omitted, static or traced.

    Returns:
        y [..., N] and what the gate decided (None if dense), of which perhaps only the gates are set.
    """
    num_kept = None if options is None else kept_count(options.grid, sparsity, options.scope)
    return apply_linear(prepare(params, options), x, options, num_kept, save=False)


def apply_linear(
    params: Params, x: Float[Array, "*b K"], options: GateOptions | None, num_kept: Count | None, *, save: bool = True
) -> tuple[Float[Array, "*b N"], Gating | None]:
    """``linear`` for a given number of kept blocks, and with parameters from ``prepare``.

    Without ``save`` only the gates of the decision are returned, which saves launches on a GPU if rows are few.
    """
    kernel = params["kernel"].astype(x.dtype)
    if options is None:
        return dense.product(x, kernel), None
    if not save and _fuses(options, x, kernel, num_kept):
        rows = x.reshape(-1, x.shape[-1])
        products, bias = score_terms(params["gate"], rows, math.prod(options.grid), options.source)
        y, gates = gated_matmul(
            *alike(rows, kernel, products, bias),
            jnp.asarray(num_kept, jnp.int32),
            grid=options.grid,
            activation="one" if options.source == "norm" else options.activation,
            normalization=options.normalization,
            implementation=options.implementation,
        )
        return y.reshape(*x.shape[:-1], -1), Gating(None, None, gates.reshape(*x.shape[:-1], *options.grid))
    scores = gate_scores(params["gate"], x, options.grid, options.source)
    kept = select_blocks(scores, num_kept=num_kept, scope=options.scope, implementation=options.implementation)
    if _is_dense(options, kernel, num_kept):
        # The dense product itself.
        return dense.product(x, kernel), Gating(None, None, options.values(scores, kept))
    return multiply_kept(options, x, kernel, scores, kept)


def multiply_kept(
    options: GateOptions,
    x: Float[Array, "*b K"],
    kernel: Float[Array, "..."],
    scores: Float[Array, "*b R C"],
    kept: Bool[Array, "*b R C"],
) -> tuple[Float[Array, "*b N"], Gating]:
    """The product with any choice of blocks, ``kept``, whose gates come from their ``scores``."""
    if options.source == "random":
        # Hashed scores only choose: all kept gates are R * C / k.
        scores = jnp.ones_like(scores)
    gates = options.values(scores, kept)
    y = block_sparse_matmul(x, kernel, local_columns(gates, kernel), implementation=options.implementation)
    return y, Gating(None, None, gates) if options.source == "norm" else Gating(scores, kept, gates)


def _is_dense(options: GateOptions, kernel: Array, num_kept: Count | None) -> bool:
    """Whether no block is omitted or scaled. With a named implementation it is False, so that this one runs."""
    most = options.grid[0] if options.scope == "column" else math.prod(options.grid)
    unscaled = options.source == "norm" and options.implementation is None and kernel.ndim == 2
    return unscaled and isinstance(num_kept, int) and num_kept == most


def _fuses(options, x, kernel, num_kept) -> bool:
    """Whether ``gated_matmul`` takes the product: few rows, a whole matrix, and a real choice of blocks."""
    if options.scope != "matrix" or options.source == "random" or MODEL in axes_of(kernel):
        return False
    if isinstance(num_kept, int) and num_kept == math.prod(options.grid):
        return False
    rows = jax.ShapeDtypeStruct((math.prod(x.shape[:-1]), x.shape[-1]), x.dtype)
    return fuses(rows, kernel, options.grid, options.implementation)


def input_cotangents(
    params: Params,
    x: Float[Array, "*b K"],
    gating: Gating | None,
    dy: Float[Array, "*b N"],
    options: GateOptions | None,
) -> tuple[Float[Array, "*b K"], Float[Array, "*b R C"] | None]:
    """Cotangents of the input and, if they have one, of the scores; ``dy`` has the columns of this device."""
    kernel = params["kernel"].astype(x.dtype)
    if options is None or gating is None:
        return psum(jnp.matmul(dy, kernel.T, preferred_element_type=jnp.float32)).astype(x.dtype), None
    gates = local_columns(gating.gates, kernel)
    dx, dgates = block_sparse_input_gradients(x, kernel, gates, dy, implementation=options.implementation)
    if options.source == "norm":
        # dgates are not used. XLA leaves them out, and kernels get them from the same products as dx.
        return psum(dx), None
    scores, kept = gating.scores, gating.kept
    assert scores is not None
    assert kept is not None
    dx, dgates = psum(dx), all_gather_columns(dgates)
    _, pull_values = jax.vjp(lambda s: options.values(s, kept), scores)
    (dscores,) = pull_values(dgates)
    _, pull_scores = jax.vjp(lambda x: gate_scores(params["gate"], x, options.grid, options.source), x)
    return dx + pull_scores(dscores)[0], dscores


def parameter_cotangents(
    params: Params,
    x: Float[Array, "*b K"],
    gating: Gating | None,
    dy: Float[Array, "*b N"],
    dscores: Float[Array, "*b R C"] | None,
    options: GateOptions | None,
) -> Params:
    """Cotangents of all parameters, each summed over all leading dimensions in one large product.

    The cotangent of a gate is None if its scores have none.
    """
    kernel = params["kernel"]
    if options is None or gating is None:
        return {"kernel": dense.weight_gradient(x, dy).astype(kernel.dtype)}
    gates = local_columns(gating.gates, kernel)
    dkernel = block_sparse_weight_gradient(x, kernel, gates, dy, implementation=options.implementation)
    if options.source == "norm":
        return {"kernel": dkernel, "gate": None}
    _, pull = jax.vjp(lambda gate: gate_scores(gate, x, options.grid, options.source), params["gate"])
    return {"kernel": dkernel, "gate": pull(dscores)[0]}


def usage(gating: Gating) -> Float[Array, "R C"]:
    """Share of the rows that used each block."""
    return (gating.gates != 0).mean(tuple(range(gating.gates.ndim - 2)), dtype=jnp.float32)
