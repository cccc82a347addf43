"""The card of a model: a few lines for people that say what it is."""

import math
from collections.abc import Sequence

import jax

from bwds.arguments import Tree
from bwds.config import ModelConfig
from bwds.cost import cost


def model_card(config: ModelConfig, params: Tree, facts: Sequence[str] = ()) -> str:
    """A text in Markdown: method, sparsity, sizes and cost, and below them the ``facts``.

    Args:
        config: the model's.
        params: its parameters, or their shapes.
        facts: one line each, such as the training text and perplexities.
    """
    share = cost(config).relative
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    lines = [
        _method(config),
        f"Size: {config.num_layers} x {config.hidden_size}, {size:,} numbers, a vocabulary of {config.vocab_size:,}; "
        f"products in {config.dtype}",
        f"Cost: {share:.3f} of the multiply-adds of the dense model of the same size, gates and softmax included",
        *facts,
    ]
    title = f"Language model: {config.method} {config.cell.upper()}"
    return "\n".join([f"# {title}", "", *(f"- {line}" for line in lines), ""])


def _method(config: ModelConfig) -> str:
    blocks = f"blocks of {config.block_size} x {config.block_size}"
    if config.method == "dynamic":
        rank = "" if config.gate_rank is None else f", rank {config.gate_rank}"
        return (
            "Method: block-wise dynamic sparseness (Hadifar et al., arXiv 2001.04686); sparsity "
            f"{config.sparsity:g}, the share of {blocks} that is left out, other ones for every input; "
            f"gates: {config.gate_source}, {config.gate_activation}{rank}"
        )
    if config.method == "static-block":
        return f"Method: block-diagonal matrices; sparsity {config.sparsity:g}, {blocks}"
    if config.method == "magnitude":
        unit = "single weights" if config.magnitude_unit == "weight" else blocks
        return f"Method: pruned by magnitude in training; sparsity {config.sparsity:g}, {unit}"
    return "Method: dense"
