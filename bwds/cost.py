"""What one token costs: multiply-adds of all matrix products, gates included, and bytes of weights read."""

import dataclasses
import math
from dataclasses import dataclass
from typing import TypeVar

from bwds.arguments import require_config
from bwds.budgets import matrix_sparsity
from bwds.config import Config, ModelConfig
from bwds.counts import kept_count, num_kept_blocks
from bwds.sparsity import diagonal_groups

Configuration = TypeVar("Configuration", ModelConfig, Config)


@dataclass(frozen=True)
class Cost:
    """Cost of one token at batch 1. Elementwise work and the embedding look-up are not counted.

    Example:
        ```python
        cost = bwds.cost(bwds.PRESETS["ptb-lstm"])
        print(f"gates {cost.gates:,}, blocks {cost.blocks:,}, softmax {cost.softmax:,}: {cost.relative:.0%} of dense")
        print(f"{cost.bytes_read:,} bytes of weights a token, dense {cost.dense_bytes_read:,}")
        ```

    Attributes:
        gates: multiply-adds of the gates' scores; none where these need no product (a bias, a hash). The source "norm"
            costs the squares of the input and one product per block; the norms of the weight are computed once.
        blocks: multiply-adds of the recurrent layers' weights that are used. For pruned and static-block models these
            are the weights that remain at the end of training.
        softmax: multiply-adds of the softmax.
        dense: multiply-adds of the dense model of the same size, softmax included.
        bytes_read: bytes of weights read at batch 1, gates, softmax and one embedding row included. With the source
            "norm" the norms of all blocks are read.
        dense_bytes_read: the same for the dense model.

    Pruned and static-block models save multiply-adds on paper only: their products here are dense, so all weights are
    read. For whole blocks a kernel that skips them could save as much; for single weights hardly any can.
    """

    gates: int
    blocks: int
    softmax: int
    dense: int
    bytes_read: int
    dense_bytes_read: int

    @property
    def total(self) -> int:
        """All multiply-adds."""
        return self.gates + self.blocks + self.softmax

    @property
    def relative(self) -> float:
        """Multiply-adds against the dense model of the same size."""
        return self.total / self.dense

    @property
    def relative_recurrent(self) -> float:
        """The same without the softmax: gates and blocks against the dense recurrent layers."""
        return (self.gates + self.blocks) / (self.dense - self.softmax)


def cost(config: ModelConfig | Config) -> Cost:
    """Multiply-adds and bytes per token of a model, from its configuration alone.

    Example:
        ```python
        for block_size in (32, 64, 128):
            model = bwds.ModelConfig(hidden_size=1536, block_size=block_size, sparsity=0.5)
            print(block_size, f"{bwds.cost(model).relative:.0%}")        # gates of small blocks cost more
        ```

    Args:
        config: of the model, or of a whole run; the size of its vocabulary counts.

    Returns:
        Multiply-adds of a token by part, those of the dense model, and bytes of weights read at batch 1.

    Raises:
        ValueError: ``config`` is neither a ``Config`` nor a ``ModelConfig``.
    """
    model = config.model if isinstance(config, Config) else config
    require_config(model)
    h = model.hidden_size
    k, n = model.matrix_shape
    gates = blocks = dense = norms = 0
    for name in model.matrices:
        dense += k * n
        blocks += _used_weights(model, k, n, matrix_sparsity(model, name))
        num_blocks = (k * n) // math.prod(model.block_shape)
        if model.method == "dynamic" and model.gate_source == "norm":
            norms += num_blocks
            gates += k + num_blocks
        elif model.method == "dynamic" and model.gate_source in ("learned", "frozen"):
            gates += k * num_blocks if model.gate_rank is None else model.gate_rank * (k + num_blocks)
    softmax = h * model.vocab_size
    width = 2 if model.dtype == "bfloat16" else 4

    def bytes_of(multiply_adds):
        # Embeddings stay float32, for decoding too.
        return width * multiply_adds + 4 * h

    # A gate of norms reads only the norms, always in float32. Any other gate is a matrix that reads each number once.
    used = (0 if norms else gates) + (blocks if model.method == "dynamic" else dense)
    return Cost(
        gates=gates,
        blocks=blocks,
        softmax=softmax,
        dense=dense + softmax,
        bytes_read=bytes_of(used + softmax) + 4 * norms,
        dense_bytes_read=bytes_of(dense + softmax),
    )


def _used_weights(model: ModelConfig, k: int, n: int, sparsity: float) -> int:
    """Weights of a [k, n] matrix of the recurrent layers that one token uses."""
    bk, bn = model.block_shape
    r, c = k // bk, n // bn
    if model.method == "dense":
        return k * n
    if model.method == "static-block":
        return k * n // diagonal_groups(model.hidden_size // bk, sparsity)
    if model.method == "magnitude" and model.magnitude_unit == "weight":
        return num_kept_blocks(k * n, sparsity)
    if model.method == "dynamic" and model.gate_scope == "column":
        return int(kept_count((r, c), sparsity, "column")) * c * bk * bn
    return num_kept_blocks(r * c, sparsity) * bk * bn


def equal_cost_dense(config: Configuration) -> Configuration:
    """The dense model whose multiply-adds per token, softmax included, come closest to those of a configuration.

    Only the method and the hidden size change. The comparison is at equal computation, not at equal parameters.

    Example:
        ```python
        model = bwds.PRESETS["ptb-lstm"].model
        dense = bwds.equal_cost_dense(model)
        print(f"costs as much as a dense model of hidden size {dense.hidden_size}, not {model.hidden_size}")
        ```

    Args:
        config: of a model, or of a whole run; the same kind is returned.

    Raises:
        ValueError: no hidden size comes within 1%, as can happen with tiny models.
    """
    if isinstance(config, Config):
        return dataclasses.replace(config, model=equal_cost_dense(config.model))
    require_config(config)
    target = cost(config).total
    # One layer has w * H^2 weights: layers * w * H^2 + V * H = target.
    per_layer = 8 if config.cell == "lstm" else 6
    a, v = config.num_layers * per_layer, config.vocab_size
    root = (math.sqrt(v * v + 4 * a * target) - v) / (2 * a)
    sizes = [dataclasses.replace(config, method="dense", hidden_size=max(1, math.floor(root) + i)) for i in (0, 1)]
    found = min(sizes, key=lambda model: abs(cost(model).total - target))
    off = cost(found).total / target - 1.0
    if abs(off) > 0.01:
        raise ValueError(
            f"No dense model comes within 1% of {target:,} multiply-adds a token: hidden size {found.hidden_size} is "
            f"{100 * off:+.1f}% off. Take a larger model."
        )
    return found
