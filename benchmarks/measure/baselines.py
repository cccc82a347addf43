"""LSTM language models as other libraries run them: PyTorch's, which is cuDNN's on an NVIDIA GPU, and cuDNN's in JAX.

Each has an embedding, LSTM layers and a softmax of the same sizes as our dense model. They are timed at greedy decoding
of one token after the other, and at one training step.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.threads import cores


def baseline(config, first, steps):
    """{name: a call that decodes ``steps`` tokens in each stream}; empty where there is nothing to compare with.

    Args:
        config: of the dense model.
        first: the token that each stream starts with, [B].
        steps: tokens of one call.
    """
    platform = jax.default_backend()
    if config.cell != "lstm":
        return {}
    if platform == "cpu":
        return pytorch(config, first, steps)
    if platform == "gpu":
        # JAX offers cuDNN's LSTM in float32 only.
        in_jax = {"cudnn": cudnn(config, first, steps)} if config.dtype == "float32" else {}
        return in_jax | pytorch_on_a_gpu(config, first, steps)
    return {}


def training(config, tokens):
    """{name: a call that trains one step}; empty where there is nothing to compare with.

    It is ``torch.nn.LSTM`` on a CPU with the same sizes, dropout, clipping and optimiser; in bfloat16 under
    ``autocast``. The recurrent state is carried from step to step.

    Args:
        config: of a dense run.
        tokens: int32 [B, T + 1].
    """
    model, optim = config.model, config.optim
    other = (model.weight_dropout, model.embedding_dropout, model.locked_dropout, model.tied_softmax)
    other += (optim.activation_penalty, optim.temporal_activation_penalty, optim.ema_decay, optim.weight_decay)
    torch = _torch() if model.cell == "lstm" and jax.default_backend() == "cpu" and not any(other) else None
    if torch is None:
        return {}
    layers = _layers(torch, model, torch.float32)
    first, between = (model.dropout if rate is None else rate for rate in (model.dropout_input, model.dropout_hidden))
    layers["lstm"].dropout = between if model.num_layers > 1 else 0.0
    rule = {"sgd": torch.optim.SGD, "adamw": partial(torch.optim.AdamW, weight_decay=0.0)}[optim.name]
    optimizer = rule(layers.parameters(), lr=optim.learning_rate)
    inputs, targets = (torch.from_numpy(part.astype(np.int64)) for part in (tokens[:, :-1], tokens[:, 1:]))
    dropout, cast = torch.nn.functional.dropout, model.dtype == "bfloat16"
    state = None

    def forward():
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            y, after = layers["lstm"](dropout(layers["embedding"](inputs), first), state)
            return layers["softmax"](dropout(y, model.dropout)), after

    def step():
        nonlocal state
        optimizer.zero_grad()
        logits, state = forward()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(layers.parameters(), optim.clip_norm)
        optimizer.step()
        state = tuple(part.detach() for part in state)
        return loss.item()

    return {"pytorch": step} if _runs("pytorch", forward) else {}


def pytorch(config, first, steps):
    """``torch.nn.LSTM`` with a loop in Python, the usual way; nothing if torch is not installed.

    It runs once with oneDNN, the default, and once without. oneDNN lays the weights out anew at every call, so for one
    step at a time PyTorch is many times faster without it.
    """
    torch = _torch()
    if torch is None:
        return {}
    layers = _layers(torch, config, getattr(torch, config.dtype))
    start = torch.from_numpy(np.array(first, np.int64))[:, None]

    def decode(onednn):
        token, state, tokens = start, None, []
        with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=onednn):
            for _ in range(steps):
                y, state = layers["lstm"](layers["embedding"](token), state)
                token = layers["softmax"](y[:, -1]).argmax(-1, keepdim=True)
                tokens.append(token)
            return torch.cat(tokens, 1)

    calls = {"pytorch": partial(decode, True), "pytorch_without_onednn": partial(decode, False)}
    return {name: call for name, call in calls.items() if _runs(name, call)}


def _runs(name, call):
    """Whether a call runs on this machine: oneDNN has no LSTM in bfloat16 for some CPUs."""
    try:
        call()
    except RuntimeError as error:
        print(f"{name} is left out: {str(error).splitlines()[0]}")
        return False
    return True


def pytorch_on_a_gpu(config, first, steps):
    """``torch.nn.LSTM``, which calls cuDNN: with a loop in Python, and all tokens of a call as one CUDA graph.

    The graph is to PyTorch what jit is to JAX; without it the loop waits for Python. Where our model is in bfloat16,
    PyTorch's is in float16, because PyTorch copies the weights of a bfloat16 LSTM at every call, which takes three
    times as long. Nothing if torch is not installed.
    """
    torch = _torch()
    if torch is None:
        return {}
    if not torch.cuda.is_available():
        print("PyTorch sees no GPU: its LSTM is left out")
        return {}
    narrow = config.dtype == "bfloat16"
    dtype, suffix = (torch.float16, "_float16") if narrow else (torch.float32, "")
    layers = _layers(torch, config, dtype).cuda().eval()
    start = torch.from_numpy(np.array(first, np.int64)).cuda()[:, None]
    zeros = torch.zeros((config.num_layers, len(start), config.hidden_size), dtype=dtype, device="cuda")

    @torch.no_grad()
    def decode():
        token, state, tokens = start, (zeros, zeros), []
        for _ in range(steps):
            y, state = layers["lstm"](layers["embedding"](token), state)
            token = layers["softmax"](y[:, -1]).argmax(-1, keepdim=True)
            tokens.append(token)
        return torch.cat(tokens, 1)

    def finished(call):
        def run():
            out = call()
            torch.cuda.synchronize()
            return out

        return run

    calls, stream = {f"pytorch{suffix}": finished(decode)}, torch.cuda.Stream()
    try:
        # PyTorch captures only what has run before, on a stream other than the default one.
        with torch.cuda.stream(stream):
            decode()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = decode()
    except RuntimeError as error:
        print(f"PyTorch does not make a CUDA graph of its LSTM here, which is left out: {error}")
        return calls

    def replay():
        graph.replay()
        return captured

    return calls | {f"pytorch_graph{suffix}": finished(replay)}


def _torch():
    """PyTorch, set to the cores of this process; None, and a line that says so, if it is not installed."""
    try:
        import torch
    except ImportError:
        print("PyTorch is not installed: its LSTM is left out (pip install -e '.[bench]')")
        return None
    torch.set_num_threads(cores())
    return torch


def _layers(torch, config, dtype):
    """Embedding, LSTM layers and softmax of PyTorch."""
    h, vocab = config.hidden_size, config.vocab_size
    return torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(vocab, h, dtype=dtype),
            "lstm": torch.nn.LSTM(h, h, config.num_layers, batch_first=True, dtype=dtype),
            "softmax": torch.nn.Linear(h, vocab, dtype=dtype),
        }
    )


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
