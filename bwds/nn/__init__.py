"""Flax NNX modules: containers of parameters over the functions of this package.

A module's ``nnx.state(module, nnx.Param)``, as a pure dict, is the tree of parameters that the functions take.

Example:
    ```python
    layer = bwds.nn.BlockSparseLinear(256, 512, sparsity=0.75, block_shape=(64, 64), rngs=nnx.Rngs(0))
    y = layer(jnp.ones((3, 256)))                                               # [3, 512]
    ```

The gates are softplus by default, while those of ``ModelConfig`` are linear, as in the paper. Linear scores have both
signs, so the sum that gates are divided by can pass zero, and near zero the layer amplifies its input. A tuned recipe
with clipped gradients can cope with that. Softplus gates are positive and finite at any sparsity, so they suit networks
in which nothing else bounds the gates. So do softmax gates, which set larger scores further apart, and ReLU gates,
which can be zero for kept blocks of low scores. At sparsity 0 a layer with any of these gates still weighs its blocks,
so it is not a dense one.
"""

from bwds.lstm import LSTMCarry
from bwds.nn.linear import BlockSparseLinear
from bwds.nn.recurrent import LSTM, QRNN, Outputs
from bwds.nn.usage import usage_by_label
from bwds.qrnn import QRNNCarry

__all__ = ["LSTM", "QRNN", "BlockSparseLinear", "LSTMCarry", "Outputs", "QRNNCarry", "usage_by_label"]
