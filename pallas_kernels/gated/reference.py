"""The gated product as three steps, on every platform:

kept  = the k largest of scores + bias, row by row, over the whole grid
gates = gate_values(scores + bias, kept)
y     = block_sparse_matmul(x, w, gates)
"""

from pallas_kernels.block_sparse.api import block_sparse_matmul
from pallas_kernels.gated.gate_values import gate_values
from pallas_kernels.topk.search import largest


def gated_matmul(x, w, scores, bias, k, *, grid, activation, normalization, implementation):
    """(y, gates); arguments are those of ``api.gated_matmul``."""
    whole = scores + bias[None, :]
    kept = largest(whole, k, implementation=implementation).reshape(-1, *grid)
    gates = gate_values(whole.reshape(-1, *grid), kept, activation=activation, normalization=normalization)
    return block_sparse_matmul(x, w, gates, implementation=implementation), gates
