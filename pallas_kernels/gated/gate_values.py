"""From the scores of the kept blocks to their gates (arXiv 2001.04686): one function for kernels and plain code."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

# The least magnitude of the sum that a linear gate divides by, as a share of sum(|kept scores|). Below the share of
# "mean" the sum has lost its leading digits in float32; below that of "bounded" its gradient is too large for training.
SMALLEST_SUM = {"mean": 1e-4, "bounded": 0.1}
# softplus(-40) = exp(-40) = 4e-18: small enough to omit a block in effect, large enough to be divided by.
LOWEST_SCORE = -40.0
# Scales are kept in the range whose reciprocals are normal float32 numbers.
SCALE_RANGE = (1e-37, 1e37)


def gate_values(
    scores: Float[Array, "*b R C"], kept: Bool[Array, "*b R C"], *, activation: str, normalization: str
) -> Float[Array, "*b R C"]:
    """Gates of scores [..., R, C] in their dtype, zero where ``kept`` is not set; computed in float32.

    Args:
        scores: of all blocks.
        kept: which of them count.
        activation: "linear", "softplus", "softmax", "relu" (``bwds.gate_values`` has the equations), or "one": kept
            gates are one.
        normalization: "mean", "bounded" or "none".
    """
    over_matrix = {"axis": (-2, -1), "keepdims": True}
    values = scaled_scores(
        scores.astype(jnp.float32),
        kept,
        scores.shape[-1] * scores.shape[-2],
        total=functools.partial(jnp.sum, **over_matrix),
        maximum=functools.partial(jnp.max, **over_matrix),
        activation=activation,
        normalization=normalization,
    )
    return values.astype(scores.dtype)


def scaled_scores(scores, kept, num_blocks: int, *, total, maximum, activation, normalization):
    """``gate_values`` of float32 scores in any arrangement, so that kernels can call it too.

    ``total`` and ``maximum`` are functions: sum and maximum over all scores of a matrix of ``num_blocks`` blocks.
    """
    if activation == "one":
        return kept.astype(jnp.float32)
    if activation == "relu":
        return _relu(scores, kept, num_blocks, total, maximum, normalization)
    if activation == "softmax":
        # Relative to the largest kept score, so that no exponential overflows and one of them is 1.
        below = scores - lax.stop_gradient(maximum(jnp.where(kept, scores, jnp.finfo(jnp.float32).min)))
        values = jnp.where(kept, jnp.exp(jnp.where(below > LOWEST_SCORE, below, LOWEST_SCORE)), 0.0)
        return values * (num_blocks / total(values))
    if activation == "softplus":
        values = jnp.where(kept, jax.nn.softplus(jnp.maximum(scores, LOWEST_SCORE)), 0.0)
        if normalization == "none":
            return values
        # The first division is by the maximum, so that neither the sum nor its square leaves the range of float32.
        values /= lax.stop_gradient(maximum(values)).clip(*SCALE_RANGE)
        return values * (num_blocks / total(values))
    values = jnp.where(kept, scores, 0.0)
    if normalization == "none":
        return values
    # The result does not depend on the scale of the scores: a constant factor keeps extreme ones in range.
    scale = lax.stop_gradient(maximum(jnp.abs(values)))
    all_zero = scale < SCALE_RANGE[0]
    values = jnp.where(all_zero, kept.astype(jnp.float32), values / scale.clip(*SCALE_RANGE))
    sums = total(values)
    bound = SMALLEST_SUM[normalization] * lax.stop_gradient(total(jnp.abs(values)))
    safe = jnp.where(jnp.abs(sums) >= bound, sums, jnp.where(sums < 0, -bound, bound))
    return values * (num_blocks / safe)


def _relu(scores, kept, num_blocks, total, maximum, normalization):
    """max(1 + (s - m) / sqrt(mean((s - m)^2) + 1), 0) of the kept scores s of mean m, times num_blocks / num_kept."""
    if normalization == "none":
        return jnp.where(kept & (scores > 0), scores, 0.0)
    # Differences from the largest kept score are exactly zero for equal scores. They are taken of halves, so that none
    # leaves the range of float32, and then divided by a constant, so that no square does.
    top = lax.stop_gradient(maximum(jnp.where(kept, scores, jnp.finfo(jnp.float32).min)))
    below = jnp.where(kept, 0.5 * scores - 0.5 * top, 0.0)
    scale = lax.stop_gradient(maximum(-below)).clip(1.0, SCALE_RANGE[1])
    below /= scale
    num_kept = total(kept.astype(jnp.float32))
    centred = jnp.where(kept, below - total(below) / num_kept, 0.0)
    mean_square = total(jnp.square(centred)) / num_kept + jnp.square(0.5 / scale)
    values = 1.0 + centred / jnp.sqrt(mean_square)
    return jnp.where(kept & (values > 0), values * (num_blocks / num_kept), 0.0)
