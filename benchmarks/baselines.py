"""LSTM language models as other libraries run them: PyTorch on a CPU, cuDNN on an NVIDIA GPU.

Each has the sizes of a dense model of ours: embedding, LSTM layers, softmax, and greedy decoding of one word after the
other.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from common import cores
from jax import lax


def baseline(config, first, steps):
    """{name: a call that decodes ``steps`` words in each stream}, empty where there is nothing to compare with.

    Args:
        config: of the dense model.
        first: the word that each stream starts with, [B].
        steps: words of one call.
    """
    platform = jax.default_backend()
    if config.cell != "lstm":
        return {}
    if platform == "cpu":
        return pytorch(config, first, steps)
    if platform == "gpu" and config.dtype == "float32":
        return {"cudnn": cudnn(config, first, steps)}
    return {}


def pytorch(config, first, steps):
    """``torch.nn.LSTM`` with a loop in Python, the usual way, on all cores; nothing if torch is not installed.

    Once as it comes, with oneDNN, which lays the weights out anew at every call, and once without it, which for one
    step at a time is many times faster.
    """
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: its LSTM is left out")
        return {}

    torch.set_num_threads(cores())
    h, dtype = config.hidden_size, getattr(torch, config.dtype)
    embedding = torch.nn.Embedding(config.vocab_size, h, dtype=dtype)
    lstm = torch.nn.LSTM(h, h, config.num_layers, batch_first=True, dtype=dtype)
    softmax = torch.nn.Linear(h, config.vocab_size, dtype=dtype)
    start = torch.from_numpy(np.array(first, np.int64))[:, None]

    def decode(onednn):
        token, state, tokens = start, None, []
        with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=onednn):
            for _ in range(steps):
                y, state = lstm(embedding(token), state)
                token = softmax(y[:, -1]).argmax(-1, keepdim=True)
                tokens.append(token)
            return torch.cat(tokens, 1)

    return {"pytorch": partial(decode, True), "pytorch_without_onednn": partial(decode, False)}


def cudnn(config, first, steps):
    """The cuDNN LSTM, as ``jax.experimental.rnn`` gives it (float32 only), under one jit as ours."""
    from jax.experimental import rnn

    h, layers = config.hidden_size, config.num_layers
    lengths = jnp.ones(first.shape, jnp.int32)

    @jax.jit
    def init(key):
        keys = jax.random.split(key, 3)
        uniform = lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -0.1, 0.1)  # noqa: E731
        return {
            "embedding": uniform(keys[0], (config.vocab_size, h)),
            "weights": rnn.init_lstm_weight(keys[1], h, h, layers, False),
            "kernel": uniform(keys[2], (h, config.vocab_size)),
            "bias": jnp.zeros((config.vocab_size,)),
        }

    @jax.jit
    def decode(params, first):
        def step(state, _):
            token, hidden, cell = state
            x = params["embedding"][token][:, None]
            # Positional from here to the end: dropout 0, one direction.
            y, hidden, cell = rnn.lstm(x, hidden, cell, params["weights"], lengths, h, h, layers, 0.0, False)
            token = (y[:, 0] @ params["kernel"] + params["bias"][None]).argmax(-1).astype(jnp.int32)
            return (token, hidden, cell), token

        zeros = jnp.zeros((layers, len(first), h), jnp.float32)
        return lax.scan(step, (first.astype(jnp.int32), zeros, zeros), length=steps)[1]

    params = init(jax.random.key(0))
    return lambda: decode(params, first)
