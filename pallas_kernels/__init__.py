"""Products with the kept blocks of a weight matrix, and the search for the largest scores.

The package knows nothing of models: x, w and gates come in, y goes out.
"""

from pallas_kernels.block_sparse.api import (
    block_sparse_input_gradients,
    block_sparse_matmul,
    block_sparse_weight_gradient,
)
from pallas_kernels.layout import from_block_major, to_block_major
from pallas_kernels.topk.search import largest

__all__ = [
    "block_sparse_input_gradients",
    "block_sparse_matmul",
    "block_sparse_weight_gradient",
    "from_block_major",
    "largest",
    "to_block_major",
]
