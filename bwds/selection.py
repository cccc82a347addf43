"""From scores to gates: choose the k best blocks for every input, then normalise their scores (arXiv 2001.04686)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bwds.arguments import as_array
from bwds.array_types import Array, Bool, Float, Whole
from bwds.checks import require_choice, require_number, require_scaling
from bwds.config import Activation, Normalization, Scope
from bwds.counts import kept_count
from pallas_kernels import largest
from pallas_kernels.explicit_axes import spec_of, takes_explicit_axes
from pallas_kernels.gated import gate_values as kernels


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
        implementation: that of the product; with "xla" and "reference" the search takes no Pallas kernel either.

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
        # An int, because under a trace a comparison of arrays would be traced too.
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
    square. For scores of any sign, some gates are R * C / k or more. A kept score more than q below the mean gives a
    gate of zero, and one block less is read. The mean over all gates is one, or up to 1.5 where gates are cut to zero.
    The 1 under the root and the 1 before it make gates nearly equal for scores near zero, as at initialisation; a
    change of one in its score moves no gate by more than R * C / k.

    The sum of linear scores can pass through zero. If its magnitude is below 1e-4 of the sum of magnitudes, or with
    normalization "bounded" below 0.1 of it, that bound, with the sign of the sum, takes its place and is held constant
    in differentiation, so gates stay finite (at most 1e4 * R * C, with "bounded" 10 * R * C). If every kept score is
    zero (below 1e-37), all kept gates are R * C / k, the value for equal scores. All is computed in float32.

    Args:
        scores: [..., R, C].
        kept: which blocks are kept, at least one a matrix, [..., R, C].
        activation: a.
        normalization: "mean" or "bounded" as above, which differ for "linear" alone. "none", for comparison: gates =
            a(scores), for "relu" max(scores, 0). Softmax has no "none": its divisor is part of it.

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
    """Gates from scores (arXiv 2001.04686): the k largest are kept and normalised to mean one, the others are zero.

        gates = a(scores) * R * C / sum(a(scores) of the kept blocks)

    Exactly k blocks of every matrix are kept (``select_blocks``); the gradient flows through their scores only, not
    through the choice. A kept linear score of exactly zero gives a gate of zero, and so do kept scores far below their
    mean with "relu". For finite scores, gates and gradients are finite at every sparsity in [0, 1); ``gate_values``
    says how.

    Take the activation "linear" for the paper's gates, and "softplus" or "softmax" for training that must not spike.

    Example:
        ```python
        scores = jax.random.normal(jax.random.key(0), (3, 4, 8))
        gates = bwds.topk_gates(scores, sparsity=0.75, activation="softplus")
        assert ((gates != 0).sum(axis=(1, 2)) == 8).all()                      # every row keeps 8 of 32 blocks
        ```

    Args:
        scores: one score a block, [..., R, C], float32 or bfloat16, as ``gate_scores`` gives them.
        sparsity: fraction of blocks omitted, in [0, 1), static or traced; k is ``num_kept_blocks`` of R * C.
        num_kept: k itself, static or traced, instead of ``sparsity``.
        activation: "linear", the paper's: scores have both signs, so the sum that gates are divided by can pass zero.
            Near zero gates are large (up to 1e4 * R * C) and amplify rounding, gradients and loss.
            "softplus": positive; finite at any sparsity; the layers of ``bwds.nn`` have it by default.
            "softmax": positive, at most R * C; larger scores stand out more than with softplus.
            "relu": zero for kept scores far below their mean; at most (1 + sqrt(k)) * R * C / k.
        normalization: "mean": gates have mean one (the paper's); those of "relu" at most 1.5. "bounded": linear gates
            have mean one unless the sum is less than a tenth of the sum of magnitudes, and are at most 10 * R * C;
            other gates are as with "mean". "none": a(scores) of the kept blocks, not divided; not for "softmax".
        scope: "matrix": top-k over all blocks; "column": inside each block column, k of its R blocks.

    Returns:
        gates [..., R, C] in the dtype of ``scores``.

    Raises:
        ValueError: an argument is out of range, unknown or of another shape or dtype, both or neither of ``sparsity``
            and ``num_kept`` are given, or options have no meaning together.
    """
    kept = select_blocks(scores, sparsity=sparsity, num_kept=num_kept, scope=scope)
    return gate_values(as_array("scores", scores), kept, activation=activation, normalization=normalization)
