"""Flax NNX modules: containers of parameters over the functions of this package.

A module's ``nnx.state(module, nnx.Param)``, as a pure dict, is the tree of parameters that the functions take.

Example:
    ```python
    layer = bwds.nn.BlockSparseLinear(256, 512, sparsity=0.75, block_shape=(64, 64), rngs=nnx.Rngs(0))
    y = layer(jnp.ones((3, 256)))                                               # [3, 512]
    ```

Their gates are softplus by default, ``ModelConfig``'s are linear. Linear is the paper's: scores have both signs, so the
sum that gates are divided by can pass zero, near which a layer amplifies whatever comes in; a recipe tuned to it, with
clipped gradients, bears that. Softplus is positive; finite at any sparsity: a gate for networks in which nothing else
is known to hold it. Softmax is for the same networks, with a gate that sets larger scores further apart; ReLU leaves
kept blocks of low scores out. None of them makes the layer at sparsity 0 a dense one, nor does finite mean that it
learns: one language model with softplus gates and all blocks did not.
"""

from bwds.lstm import LSTMCarry
from bwds.nn.linear import BlockSparseLinear
from bwds.nn.recurrent import LSTM, QRNN, Outputs
from bwds.qrnn import QRNNCarry

__all__ = ["LSTM", "QRNN", "BlockSparseLinear", "LSTMCarry", "Outputs", "QRNNCarry"]
