"""Block-wise dynamic sparseness for JAX: a gate looks at each input and picks the weight blocks that are used."""

from bwds import nn, plots, pytorch
from bwds.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from bwds.convert import convert
from bwds.cost import Cost, cost, equal_cost_dense
from bwds.counts import num_kept_blocks
from bwds.files import load, load_model, save_model
from bwds.gating import gate_scores, init_gate
from bwds.model import Info, LanguageModel, decode_params, language_model
from bwds.presets import PRESETS
from bwds.selection import topk_gates
from bwds.trained_model import TrainedModel
from bwds.vocabulary import Vocabulary
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
    "TrainedModel",
    "Vocabulary",
    "block_sparse_matmul",
    "convert",
    "cost",
    "decode_params",
    "equal_cost_dense",
    "from_block_major",
    "gate_scores",
    "init_gate",
    "language_model",
    "load",
    "load_model",
    "nn",
    "num_kept_blocks",
    "plots",
    "pytorch",
    "save_model",
    "to_block_major",
    "topk_gates",
]
