"""From the scores of the kept blocks to their gates (arXiv 2001.04686), in one place for kernels and all else."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

# What share of sum(|kept scores|) the sum of a linear gate is at least taken for. Below the first it has lost its
# leading digits in float32; below the second its gradient grows beyond what training bears.
SMALLEST_SUM = {"mean": 1e-4, "bounded": 0.1}
# softplus(-40) = exp(-40) = 4e-18: small enough to omit a block in effect, large enough to be divided by.
LOWEST_SCORE = -40.0
# What is added, squared, to the mean square that the scores of a ReLU gate are divided by, as RMSNorm does.
SMALLEST_RMS = 1e-3
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
        largest=functools.partial(jnp.max, **over_matrix),
        activation=activation,
        normalization=normalization,
    )
    return values.astype(scores.dtype)


def scaled_scores(scores, kept, num_blocks: int, *, total, largest, activation, normalization):
    """``gate_values`` of float32 scores in any arrangement, so that a kernel can take it too.

    ``total`` and ``largest`` are the sum and the maximum over all scores of a matrix, of which ``num_blocks`` count.
    """
    if activation == "one":
        return kept.astype(jnp.float32)
    if activation == "relu":
        return _relu(scores, kept, num_blocks, total, largest, normalization)
    if activation == "softmax":
        # From the largest kept score down, so that no exponential overflows and one of them is 1.
        below = scores - lax.stop_gradient(largest(jnp.where(kept, scores, jnp.finfo(jnp.float32).min)))
        values = jnp.where(kept, jnp.exp(jnp.where(below > LOWEST_SCORE, below, LOWEST_SCORE)), 0.0)
        return values * (num_blocks / total(values))
    if activation == "softplus":
        values = jnp.where(kept, jax.nn.softplus(jnp.maximum(scores, LOWEST_SCORE)), 0.0)
        if normalization == "none":
            return values
        # Divided by the largest first, so that neither the sum nor its square leaves the range of float32.
        values /= lax.stop_gradient(largest(values)).clip(*SCALE_RANGE)
        return values * (num_blocks / total(values))
    values = jnp.where(kept, scores, 0.0)
    if normalization == "none":
        return values
    # The result does not depend on the scale of the scores: a constant factor keeps extreme ones in range.
    scale = lax.stop_gradient(largest(jnp.abs(values)))
    all_zero = scale < SCALE_RANGE[0]
    values = jnp.where(all_zero, kept.astype(jnp.float32), values / scale.clip(*SCALE_RANGE))
    sums = total(values)
    bound = SMALLEST_SUM[normalization] * lax.stop_gradient(total(jnp.abs(values)))
    safe = jnp.where(jnp.abs(sums) >= bound, sums, jnp.where(sums < 0, -bound, bound))
    return values * (num_blocks / safe)


def _relu(scores, kept, num_blocks, total, largest, normalization):
    """The positive ones of the kept scores, divided by the root of the mean square of all kept ones."""
    positive = jnp.where(kept & (scores > 0), scores, 0.0)
    if normalization == "none":
        return positive
    scores = jnp.where(kept, scores, 0.0)
    # A constant factor, as large as the scores where their squares would leave the range of float32.
    scale = lax.stop_gradient(largest(jnp.abs(scores))).clip(1.0, SCALE_RANGE[1])
    num_kept = total(kept.astype(jnp.float32))
    mean_square = total(jnp.square(scores / scale)) / num_kept + jnp.square(SMALLEST_RMS / scale)
    return positive / scale * (num_blocks / num_kept / jnp.sqrt(mean_square))
