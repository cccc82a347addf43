"""Units in another order: the same dense model, with other units together in a block.

A hidden unit is a column of the matrix that makes it and a row of the matrices that read it. If these are permuted
alike, a dense model computes the same. The order decides which rows lie in one block, and so how much a block's share
of a product varies with the input: units that are active together belong into one block.
"""

from typing import Any

import numpy as np

from bwds.arguments import Tree, fitting, require_config
from bwds.array_types import Float, Int
from bwds.checks import require
from bwds.config import ModelConfig
from bwds.linear import Params
from bwds.model import parameter_shapes


def permute_units(params: Tree, config: ModelConfig, orders: Any) -> Params:
    """The same model with its units in another order: equal logits, up to rounding, from a carry of zeros.

    Example:
        ```python
        orders = [np.arange(64)[::-1], np.arange(64), np.arange(64)]            # of a model of 2 x 64
        params = bwds.permutation.permute_units(params, config, orders)
        ```

    Args:
        params: of a model without gates.
        config: the model's.
        orders: ``num_layers`` + 1 permutations of 0..H-1: one for the columns of the embedding, then one for the units
            of each layer; place u gets unit ``order[u]``. With a tied softmax the first and the last must be equal.

    Returns:
        The parameters in the new order.

    Raises:
        ValueError: the model has gates, the parameters are not its own, or the orders are no such permutations.
    """
    require_config(config)
    h, count = config.hidden_size, config.num_layers
    require(config.method != "dynamic", "method is 'dynamic'; the scores of blocks hold for the units as they are.")
    orders = [np.asarray(order) for order in orders]
    require(
        len(orders) == count + 1, f"orders are {len(orders)}; {count} layers have {count + 1}, the embedding's first."
    )
    for i, order in enumerate(orders):
        right = order.shape == (h,) and order.dtype.kind in "iu" and np.array_equal(np.sort(order), np.arange(h))
        require(right, f"orders[{i}] must be a permutation of the whole numbers from 0 to {h - 1}.")
    require(
        not config.tied_softmax or np.array_equal(orders[0], orders[-1]),
        "the softmax is tied to the embedding; the first of the orders must be the last one.",
    )
    params = fitting(params, parameter_shapes(config), config)
    permuted: Params = {"embedding": params["embedding"][:, orders[0]], "softmax": dict(params["softmax"])}
    if not config.tied_softmax:
        permuted["softmax"]["kernel"] = params["softmax"]["kernel"][orders[-1]]
    for i in range(count):
        layer, inputs, outputs = params[f"layer_{i}"], orders[i], orders[i + 1]
        parts = layer["bias"].shape[0] // h
        columns = np.concatenate([part * h + outputs for part in range(parts)])
        # A QRNN reads two inputs side by side, x_{t-1} and x_t.
        rows = {"input": np.concatenate([inputs, h + inputs]) if config.cell == "qrnn" else inputs, "hidden": outputs}
        permuted[f"layer_{i}"] = {
            name: {"kernel": product["kernel"][rows[name]][:, columns]}
            for name, product in layer.items()
            if name != "bias"
        } | {"bias": layer["bias"][columns]}
    return permuted


def group_units(magnitude: Float[np.ndarray, "n H"], block_size: int, *, rounds: int = 20) -> Int[np.ndarray, " H"]:
    """An order in which units that matter for the same tokens lie in one block: k-means with groups of equal size.

    k-means compares the magnitudes of units over all tokens. The first groups are units of similar size, so that some
    blocks matter more than others for every token. Every round computes the mean of each group and assigns each unit to
    the group with the nearest mean that has room. Units with the strongest preference come first.

    Example:
        ```python
        magnitude = np.abs(np.random.default_rng(0).normal(size=(1000, 64)))    # of 64 units at 1000 tokens
        order = bwds.permutation.group_units(magnitude, 16)
        params = bwds.permutation.permute_units(params, config, [np.arange(64), order, np.arange(64)])
        ```

    Args:
        magnitude: [n, H], how much each of H units can matter for its readers at each of n tokens; n, H at least 1.
        block_size: units of a group; divides H.
        rounds: the most rounds of k-means; 0 leaves the units in the order of their size.

    Returns:
        A permutation [H]: the units of the first block, then those of the second one, and so on.

    Raises:
        ValueError: there is no unit or no token, or ``block_size`` does not divide the units.
    """
    n, h = magnitude.shape
    require(n >= 1 and h >= 1, f"magnitude has shape {magnitude.shape}; it needs at least one token and one unit.")
    require(block_size >= 1 and h % block_size == 0, f"block_size is {block_size}; it must divide the {h} units.")
    courses = np.ascontiguousarray(magnitude.T, np.float32)
    sizes = np.square(courses).sum(1)
    groups = np.empty(h, np.int64)
    groups[np.argsort(-sizes, kind="stable")] = np.arange(h) // block_size
    for _ in range(rounds if h > block_size else 0):
        means = np.stack([courses[groups == group].mean(0) for group in range(h // block_size)])
        before, groups = groups, _balanced(2.0 * courses @ means.T - np.square(means).sum(1), block_size)
        if np.array_equal(groups, before):
            break
    return np.lexsort((-sizes, groups))


def _balanced(nearness: Float[np.ndarray, "H G"], size: int) -> Int[np.ndarray, " H"]:
    """A group for every unit, ``size`` units in each."""
    best = np.sort(nearness, axis=1)
    room = np.full(nearness.shape[1], size)
    groups = np.empty(len(nearness), np.int64)
    for unit in np.argsort(best[:, -2] - best[:, -1], kind="stable"):
        groups[unit] = np.where(room > 0, nearness[unit], -np.inf).argmax()
        room[groups[unit]] -= 1
    return groups
