"""Block-wise dynamic sparseness for JAX: a gate looks at each input and picks the weight blocks that are used."""

from bwds import nn, plots
from bwds.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bwds.cost import Cost, cost, equal_cost_dense
from bwds.counts import num_kept_blocks
from bwds.gating import gate_scores, init_gate, topk_gates
from bwds.model import Info, LanguageModel, decode_params, language_model
from bwds.presets import PRESETS
from pallas_kernels import block_sparse_matmul, from_block_major, to_block_major

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "Config",
    "Cost",
    "DataConfig",
    "Info",
    "LanguageModel",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "block_sparse_matmul",
    "cost",
    "decode_params",
    "equal_cost_dense",
    "from_block_major",
    "gate_scores",
    "init_gate",
    "language_model",
    "nn",
    "num_kept_blocks",
    "plots",
    "to_block_major",
    "topk_gates",
]
