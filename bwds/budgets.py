"""How the blocks that a model keeps are shared out among its matrices.

A configuration has one sparsity for the model. Some matrices can do without more of their blocks than others, so each
may have a sparsity of its own (``ModelConfig.sparsities``). The model's sparsity is then their mean, because all these
matrices have one shape. If the model runs at another sparsity S than the mean m of the matrices, the sparsity b of each
matrix is moved towards 0 or towards 1,

    b S / m                          where S <= m
    1 - (1 - b) (1 - S) / (1 - m)    where S > m

so that the mean is S for every S in [0, 1), and no matrix leaves that range.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bwds.checks import check_sparsity, is_array, require, require_number
from bwds.config import ModelConfig


def matrix_sparsity(config: ModelConfig, name: str, sparsity: Any = None) -> Any:
    """The sparsity of one matrix: a number of Python, or an array if ``sparsity`` is one.

    Args:
        config: the model's.
        name: of the matrix, as in ``config.matrices``.
        sparsity: that of the model, static or traced, or a mapping from the name of each matrix to its own; None: the
            configuration's.

    Raises:
        ValueError: the names of a mapping are not those of the matrices, or the configuration has ``sparsities`` and a
            static sparsity is outside [0, 1).
    """
    if isinstance(sparsity, Mapping):
        require(
            sparsity.keys() == set(config.matrices),
            f"sparsity has the names {', '.join(map(str, sparsity))}; it must have one number for each of "
            f"{', '.join(config.matrices)}.",
        )
        return sparsity[name]
    sparsity = config.sparsity if sparsity is None else sparsity
    if config.method != "dynamic" or config.sparsities is None:
        return sparsity
    require_number("sparsity", sparsity)
    if not isinstance(sparsity, jax.core.Tracer):
        check_sparsity(sparsity)
    budgets = dict(config.sparsities)
    own, mean = budgets[name], sum(budgets.values()) / len(budgets)
    more = 1.0 - (1.0 - own) * ((1.0 - sparsity) / (1.0 - mean))
    if mean == 0.0:
        return more
    less = own * (sparsity / mean)
    if is_array(sparsity):
        return jnp.where(jnp.asarray(sparsity) <= mean, less, more)
    return less if sparsity <= mean else more


def layer_sparsities(config: ModelConfig, layer: int, sparsity: Any = None) -> dict[str, Any]:
    """The sparsities of one layer's matrices, by their names within the layer ("input", "hidden")."""
    own = f"layer_{layer}/"
    names = [name for name in config.matrices if name.startswith(own)]
    return {name.removeprefix(own): matrix_sparsity(config, name, sparsity) for name in names}


def product_sparsity(config: ModelConfig, product: str, sparsity: Any = None) -> Any:
    """The sparsity of one product of a layer.

    Args:
        config: the model's.
        product: "input" or "hidden".
        sparsity: as ``layer_sparsities`` gives it, or one number for all products; None: the configuration's.
    """
    if isinstance(sparsity, Mapping):
        return sparsity[product]
    return config.sparsity if sparsity is None else sparsity
