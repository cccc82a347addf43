"""From scores to gates: choose the k best blocks for every input, normalise what they scored (arXiv 2001.04686)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bwds.arguments import Tree, as_array, plain, require_key
from bwds.array_types import Array, Bool, Float, Whole
from bwds.checks import count, pair, require, require_choice, require_gate_options, require_number, require_scaling
from bwds.config import Activation, GateSource, Normalization, Scope
from bwds.counts import kept_count
from bwds.counts import num_kept_blocks as num_kept_blocks
from bwds.hashing import hashed_scores
from bwds.norms import known_norms, norm_scores
from pallas_kernels import largest
from pallas_kernels.dense import matmul
from pallas_kernels.explicit_axes import rows_as, spec_of, takes_explicit_axes
from pallas_kernels.gated import gate_values as kernels
from pallas_kernels.gated.low_rank import low_rank


@takes_explicit_axes(lambda scores, *_, **__: spec_of(scores))
def select_blocks(
    scores: Float[Any, "*b R C"],
    *,
    sparsity: Any = None,
    num_kept: Whole | None = None,
    scope: Scope = "matrix",
    implementation: str | None = None,
) -> Bool[Array, "*b R C"]:
    """Marks the blocks with the largest scores: exactly k of a matrix, or of each block column.

    Among equal scores the block that comes first in row-major order is kept. The choice has no gradient.

    Args:
        scores: one score a block, [..., R, C].
        sparsity: fraction of blocks omitted, in [0, 1): a Python number, or a traced scalar for schedules.
        num_kept: the number of blocks kept instead of ``sparsity``, an integer or a traced int32 scalar. With scope
            "column" it counts the blocks of one column.
        scope: "matrix": all blocks compete; "column": those of one block column, so that columns are balanced.
        implementation: of the products beside it; "xla" and "reference" take no Pallas kernel for the search either.

    Raises:
        ValueError: not exactly one of ``sparsity`` and ``num_kept`` is given, a static one is out of range, ``scope``
            is unknown, or ``scores`` have fewer than two dimensions.
    """
    scores = as_array("scores", scores)
    if scores.ndim < 2:
        raise ValueError(f"scores have shape {scores.shape}; they must be [..., R, C].")
    if scores.dtype not in (jnp.float32, jnp.bfloat16, jnp.float64):
        raise ValueError(f"scores have dtype {scores.dtype}; gates need the range of float32 or bfloat16.")
    require_choice("scope", scope, Scope)
    if (sparsity is None) == (num_kept is None):
        raise ValueError("Give either sparsity or num_kept, not both and not neither.")
    scores = lax.stop_gradient(scores)
    *leading, r, c = scores.shape
    if r < 1 or c < 1:
        raise ValueError(f"scores have shape {scores.shape}; there must be at least one block.")
    n = r * c if scope == "matrix" else r
    k = kept_count((r, c), sparsity, scope) if num_kept is None else num_kept
    require_number("num_kept", k, whole=True)
    if not isinstance(k, jax.core.Tracer):
        # A number, also where other things are traced: comparing an array there would be traced as well.
        k = int(k)
        if not 1 <= k <= n:
            raise ValueError(f"num_kept is {k}; it must be at least 1 and at most {n}.")
        if k == n:
            return jnp.ones(scores.shape, bool)
    if scope == "matrix":
        return largest(scores.reshape(*leading, n), k, implementation=implementation).reshape(scores.shape)
    return largest(scores.swapaxes(-1, -2), k, implementation=implementation).swapaxes(-1, -2)


@takes_explicit_axes(lambda scores, *_, **__: spec_of(scores))
def gate_values(
    scores: Float[Array, "*b R C"],
    kept: Bool[Array, "*b R C"],
    *,
    activation: Activation = "linear",
    normalization: Normalization = "mean",
) -> Float[Array, "*b R C"]:
    """Scores of the kept blocks, scaled so that the mean over all gates of a matrix is one; zero elsewhere.

        gates = a(scores) * R * C / sum(a(scores) of the kept blocks)

    with a(s) = s ("linear", the paper's), softplus(max(s, -40)) ("softplus"), or exp(max(s - m, -40)) with m the
    largest kept score ("softmax": R * C times the softmax over the kept scores, as mixtures of experts weigh theirs).

        gates = max(1 + (scores - m) / q, 0) * R * C / k        q = sqrt(mean((scores - m)^2) + 1)

    for "relu", with k kept scores of mean m and both means over them: a ReLU of scores normalised by their root mean
    square. Whatever their signs, there are gates of R * C / k and more. A kept score more than q below the mean gives a
    gate of zero, and one block less is read. The mean over all gates is one, or up to 1.5 where gates are cut to zero.
    With 1 added and under the root, scores near zero, as at initialisation, give gates that are nearly equal, and no
    gate moves by more than R * C / k for a change of one in its score.

    The sum of linear scores can pass through zero. Where its magnitude is below 1e-4 of the sum of magnitudes, or with
    normalization "bounded" below 0.1 of it, that bound, with the sign of the sum, takes its place and is held constant
    in differentiation, so gates stay finite (at most 1e4, or 10, * R * C). If every kept score is zero (below 1e-37),
    all kept gates are R * C / k, the value for equal scores. Computed in float32.

    Args:
        scores: [..., R, C].
        kept: which blocks are kept, at least one a matrix, [..., R, C].
        activation: a.
        normalization: "mean" or "bounded" as above, which differ for "linear" alone; "none": gates = a(scores), for
            "relu" max(scores, 0), for comparison. Softmax has no "none": its divisor is part of it.

    Raises:
        ValueError: ``activation`` or ``normalization`` is unknown, or they have no meaning together.
    """
    require_choice("activation", activation, Activation)
    require_choice("normalization", normalization, Normalization)
    require_scaling(activation, normalization)
    return kernels.gate_values(scores, kept, activation=activation, normalization=normalization)


@takes_explicit_axes(lambda scores, *_, **__: spec_of(scores))
def topk_gates(
    scores: Float[Any, "*b R C"],
    *,
    sparsity: Any = None,
    num_kept: Whole | None = None,
    activation: Activation = "linear",
    normalization: Normalization = "mean",
    scope: Scope = "matrix",
) -> Float[Array, "*b R C"]:
    """Gates from scores: the largest k are kept and normalised to mean one over the matrix, the others are zero.

    Exactly k blocks of every matrix are kept (``select_blocks``); the gradient flows through their scores only, not
    through the choice. A kept linear score of exactly zero gives a gate of zero, and so do kept scores far below their
    mean with "relu". Finite, in value and gradient, for finite scores at every sparsity in [0, 1) (``gate_values`` says
    how).

    Which activation: "linear" to have the paper's; "softplus" or "softmax" for training that must not spike.

    Args:
        scores: one score a block, [..., R, C], as ``gate_scores`` gives them.
        sparsity: fraction of blocks omitted, in [0, 1), static or traced; k is ``num_kept_blocks`` of R * C.
        num_kept: k itself, static or traced, instead of ``sparsity``.
        activation: "linear", the paper's: scores have both signs, so the sum that gates are divided by can pass zero,
            near which they are large (up to 1e4 * R * C): an amplifier of rounding, gradients and loss.
            "softplus": positive; finite at any sparsity; the layers of ``bwds.nn`` have it by default.
            "softmax": positive, at most R * C; larger scores stand out more than with softplus.
            "relu": zero for kept scores far below their mean; at most (1 + sqrt(k)) * R * C / k.
        normalization: "mean": gates have mean one (the paper's); those of "relu" at most 1.5. "bounded": linear ones
            have, unless the sum is less than a tenth of the sum of magnitudes, and are at most 10 * R * C; all others
            are those of "mean". "none": a(scores) of the kept blocks, not divided; not for "softmax".
        scope: "matrix": top-k over all blocks; "column": inside each block column, k of its R blocks.

    Returns:
        gates [..., R, C] in the dtype of ``scores``.

    Raises:
        ValueError: an argument is out of range or unknown.
    """
    kept = select_blocks(scores, sparsity=sparsity, num_kept=num_kept, scope=scope)
    return gate_values(as_array("scores", scores), kept, activation=activation, normalization=normalization)


def init_gate(
    key: Array, num_features: Whole, num_blocks: Whole, rank: Whole | None = None, source: GateSource = "learned"
) -> dict[str, Array]:
    """Parameters of the scores of one matrix, uniform in ±1/sqrt(inputs) as the authors' linear layers.

        gate = bwds.init_gate(key, 256, 4 * 8)                    # of a weight w [256, 512] in 4 x 8 blocks of 64 x 64
        scores = bwds.gate_scores(gate, x, (4, 8))                # x [..., 256], scores [..., 4, 8]
        gates = bwds.topk_gates(scores, sparsity=0.75)            # of 32 blocks every row keeps 8
        y = bwds.block_sparse_matmul(x, w, gates)                 # [..., 512], differentiable in gate, x and w

    Args:
        key: one key, as ``jax.random.key`` makes it.
        num_features: K, the inputs of the matrix.
        num_blocks: R * C.
        rank: width between the two factors of a low-rank gate, which costs less; None: a full matrix.
        source: as in ``gate_scores``.

    Returns:
        {"kernel": [K, R * C], "bias": [R * C]}, or with a rank {"down": [K, rank], "up": [rank, R * C], "bias"}. The
        source "bias" has {"bias"} alone, "norm" and "random" nothing. All float32.

    Raises:
        ValueError: ``key`` is not one key, a number is not whole and positive, ``source`` is unknown, or is "norm" and
            there is a rank.
    """
    require_key("key", key)
    num_features, num_blocks = count("num_features", num_features), count("num_blocks", num_blocks)
    rank = None if rank is None else count("rank", rank)
    require_choice("source", source, GateSource)
    require_gate_options(source, rank)
    if source in ("norm", "random"):
        return {}
    keys = jax.random.split(key, 3)

    def uniform(key, shape, fan_in):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    bias = uniform(keys[0], (num_blocks,), num_features)
    if source == "bias":
        return {"bias": bias}
    if rank is None:
        return {"kernel": uniform(keys[1], (num_features, num_blocks), num_features), "bias": bias}
    # The product of two uniform factors is smaller than one of them: scaled so that scores start at the same size.
    return {
        "down": uniform(keys[1], (num_features, rank), num_features) * 3**0.5,
        "up": uniform(keys[2], (rank, num_blocks), rank),
        "bias": bias,
    }


@takes_explicit_axes(lambda params, x, *_, **__: rows_as(x, None, None))
def gate_scores(
    params: Tree,
    x: Float[Any, "*b K"],
    grid: tuple[int, int],
    source: GateSource = "learned",
    *,
    w: Float[Any, "..."] | None = None,
) -> Float[Array, "*b R C"]:
    """scores = x @ gate_kernel + gate_bias; with a rank, x @ down @ up + bias. Norms instead, and three controls.

    The factors are in the dtype of ``x``; sums are accumulated in float32, and so are the scores. ``init_gate`` shows
    what they are for.

    Args:
        params: as ``init_gate`` makes them.
        x: input [..., K], float32 or bfloat16.
        grid: (R, C).
        source: "learned". "frozen": the same with parameters that get no gradient; that of ``x`` through the scores is
            the true one. "bias": the bias alone, whatever ``x`` is. "random": ``hashed_scores``, without gradients.
            "norm": ||x_r|| * ||w_rc||_F, without gradients: kept blocks have a gate of one.
        w: for "norm" alone: the weight that is gated, [K, N] or block-major. Instead of it ``params`` may hold
            {"norms": [R, C]} of its blocks, as ``decode_params`` lays them beside a kernel.

            gate_scores({}, x, (4, 8), "norm", w=w)

    Raises:
        ValueError: ``source`` is unknown, or names, shapes or types do not fit together.
    """
    require_choice("source", source, GateSource)
    x = as_array("x", x)
    floating = x.ndim >= 1 and jnp.issubdtype(x.dtype, jnp.floating)
    require(floating, f"x has shape {x.shape} and dtype {x.dtype}; it must be [..., K], of floating-point numbers.")
    grid = pair("grid", grid)
    num_blocks = grid[0] * grid[1]
    require(w is None or source == "norm", f"w is for the source 'norm'; scores of {source!r} come from params alone.")
    if source == "norm":
        return norm_scores(x, known_norms(params, x.shape[-1], grid, w))
    if source == "random":
        return hashed_scores(x, num_blocks).reshape(*x.shape[:-1], *grid)
    scores, bias = score_terms(_gate(params, x.shape[-1], grid, source), x, num_blocks, source)
    scores += jnp.expand_dims(bias, tuple(range(scores.ndim - 1)))
    return scores.reshape(*x.shape[:-1], *grid)


def _gate(params: Any, num_features: int, grid: tuple[int, int], source: GateSource) -> dict[str, Array]:
    """The parameters of a gate as a dict; ``ValueError`` unless they are of this input and grid."""
    gate, num_blocks = plain("params", params), grid[0] * grid[1]
    shapes = {name: value.shape for name, value in gate.items() if not isinstance(value, dict)}
    rank = shapes.get("up", (0,))[0]
    bias, full = {"bias": (num_blocks,)}, {"kernel": (num_features, num_blocks)}
    factors = {"down": (num_features, rank), "up": (rank, num_blocks)}
    wanted = bias if source == "bias" else bias | (factors if "down" in gate else full)
    require(
        len(gate) == len(shapes) and shapes == wanted,
        f"params have shapes {shapes}; for x of {num_features} features and {grid[0]} x {grid[1]} blocks the gate "
        f"{source!r} has {wanted}: make them with init_gate.",
    )
    return gate


def score_terms(
    params: dict[str, Array], x: Float[Array, "*b K"], num_blocks: int, source: GateSource
) -> tuple[Float[Array, "*b n"], Float[Array, " n"]]:
    """What ``gate_scores`` adds up: products, which depend on ``x``, and the bias, both float32."""
    dtype = x.dtype
    if source == "frozen":
        params = lax.stop_gradient(params)
    if source == "norm":
        products = norm_scores(x, params["norms"]).reshape(*x.shape[:-1], num_blocks)
        return products, jnp.zeros(num_blocks, jnp.float32)
    if source == "bias":
        products = jnp.zeros((*x.shape[:-1], num_blocks), jnp.float32)
    elif "kernel" in params:
        products = matmul(x, params["kernel"].astype(dtype))
    else:
        products = low_rank(x, params["down"].astype(dtype), params["up"].astype(dtype))
    return products, params["bias"]
