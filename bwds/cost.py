"""What one token costs: multiply-adds of all matrix products, gates included, and bytes of weights read."""

from dataclasses import dataclass

from bwds.config import Config, ModelConfig
from bwds.gating import kept_count


@dataclass(frozen=True)
class Cost:
    """Cost of one token at batch 1. Elementwise work and the embedding look-up are not counted.

    Attributes:
        gates: multiply-adds of the gates' scores.
        blocks: multiply-adds of the recurrent layers' weights that are used.
        softmax: multiply-adds of the softmax.
        dense: multiply-adds of the dense model of the same size, softmax included.
        bytes_read: bytes of weights read at batch 1, gates, softmax and one embedding row included.
        dense_bytes_read: the same for the dense model.
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
    """Multiply-adds and bytes per token of a model, from its configuration alone."""
    model = config.model if isinstance(config, Config) else config
    h = model.hidden_size
    shapes = [(h, 4 * h)] * 2 if model.cell == "lstm" else [(2 * h, 3 * h)]
    gates = blocks = dense = 0
    for k, n in shapes * model.num_layers:
        dense += k * n
        if model.method == "dense":
            blocks += k * n
            continue
        bk, bn = model.block_shape
        r, c = k // bk, n // bn
        kept = kept_count((r, c), model.sparsity, model.gate_scope) * (c if model.gate_scope == "column" else 1)
        blocks += int(kept) * bk * bn
        gates += k * r * c if model.gate_rank is None else model.gate_rank * (k + r * c)
    softmax = h * model.vocab_size
    width = 2 if model.dtype == "bfloat16" else 4

    def bytes_of(multiply_adds):
        return width * (multiply_adds + h)

    return Cost(
        gates=gates,
        blocks=blocks,
        softmax=softmax,
        dense=dense + softmax,
        bytes_read=bytes_of(gates + blocks + softmax),
        dense_bytes_read=bytes_of(dense + softmax),
    )
