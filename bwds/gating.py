"""Scores of the blocks of a matrix, which say how much each block matters for an input; their parameters; controls."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bwds.arguments import Tree, as_array, plain, require_key
from bwds.array_types import Array, Float, Whole
from bwds.checks import count, pair, require, require_choice, require_gate_options
from bwds.config import GateSource
from bwds.hashing import hashed_scores
from bwds.norms import known_norms, norm_scores
from pallas_kernels.dense import matmul
from pallas_kernels.explicit_axes import rows_as, takes_explicit_axes
from pallas_kernels.gated.low_rank import low_rank


def init_gate(
    key: Array, num_features: Whole, num_blocks: Whole, rank: Whole | None = None, source: GateSource = "learned"
) -> dict[str, Array]:
    """Parameters of the scores of one matrix (arXiv 2001.04686), uniform in ±1/sqrt(inputs) as in the paper's code.

    Example:
        ```python
        x, w = jnp.ones((3, 256)), jnp.ones((256, 512))           # w in 4 x 8 blocks of 64 x 64
        gate = bwds.init_gate(jax.random.key(0), 256, 4 * 8)
        scores = bwds.gate_scores(gate, x, (4, 8))                # x [..., 256], scores [..., 4, 8]
        gates = bwds.topk_gates(scores, sparsity=0.75)            # every row keeps 8 of 32 blocks
        y = bwds.block_sparse_matmul(x, w, gates)                 # [..., 512], differentiable in gate, x and w
        ```

    Args:
        key: one key, as ``jax.random.key`` makes it.
        num_features: K, the inputs of the matrix.
        num_blocks: R * C.
        rank: width between the two factors of a low-rank gate, which costs less; None: a full matrix.
        source: as in ``gate_scores``.

    Returns:
        {"kernel": [K, R * C], "bias": [R * C]}, or with a rank {"down": [K, rank], "up": [rank, R * C], "bias"}. For
        the source "bias" {"bias"} alone, for "norm" and "random" an empty dict. All arrays are float32.

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
    # The product of two uniform factors is too small; with this factor scores start at the size of a full gate's.
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
    """Scores of all blocks for every row (arXiv 2001.04686), or norms or a control in their place.

        scores = x @ kernel + bias, or with a rank x @ down @ up + bias

    The factors are cast to the dtype of ``x``; sums are accumulated in float32, and the scores are float32. The example
    of ``init_gate`` goes on to the product.

    Example:
        ```python
        x, w = jnp.ones((3, 256)), jnp.ones((256, 512))                         # 4 x 8 blocks of 64 x 64
        gate = bwds.init_gate(jax.random.key(0), 256, 4 * 8)
        scores = bwds.gate_scores(gate, x, (4, 8))                              # [3, 4, 8]
        scores = bwds.gate_scores({}, x, (4, 8), "norm", w=w)                   # without parameters
        ```

    Args:
        params: as ``init_gate`` makes them.
        x: input [..., K], float32 or bfloat16.
        grid: (R, C).
        source: "learned": the equation above. "frozen": the same, but the parameters get no gradient, while ``x`` does.
            "bias": the bias alone, for any ``x``. "random": ``hashed_scores``, without gradients. "norm":
            ||x_r|| * ||w_rc||_F, without gradients; kept blocks then have a gate of one.
        w: for "norm" alone: the weight that is gated, [K, N] or block-major, float32 or bfloat16. Instead of it
            ``params`` may hold {"norms": [R, C]} of its blocks, as ``decode_params`` puts them beside a kernel.

    Returns:
        Scores [..., R, C], float32.

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
    """The two terms of ``gate_scores``, both float32: products, which depend on ``x``, and the bias."""
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
