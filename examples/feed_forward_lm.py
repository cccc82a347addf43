"""A block-sparse layer in a network of one's own: a feed-forward language model in Flax NNX, trained with optax.

    pip install -e ".[train]" && python examples/feed_forward_lm.py

The embeddings of the last eight tokens lie side by side and go through one hidden layer to the next one (Bengio et al.,
A Neural Probabilistic Language Model, 2003). The hidden layer is dense, and then block-wise dynamic with half of its
blocks omitted; everything else is the same. The text is the documentation of Python, so nothing is downloaded.
"""

import functools
import math

import jax
import numpy as np
import optax
from flax import nnx
from tqdm import trange

import bwds
from bwds.config import DataConfig
from bwds.data import load_corpus

CONTEXT, WIDTH, HIDDEN, BATCH = 8, 64, 512, 128


class FeedForwardLM(nnx.Module):
    """Scores of the next token, [B, V], from the last tokens [B, CONTEXT]."""

    def __init__(self, vocab_size: int, sparsity: float | None, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(vocab_size, WIDTH, rngs=rngs)
        if sparsity is None:
            self.hidden = nnx.Linear(CONTEXT * WIDTH, HIDDEN, rngs=rngs)
        else:
            self.hidden = bwds.nn.BlockSparseLinear(
                CONTEXT * WIDTH, HIDDEN, sparsity=sparsity, block_shape=(64, 64), gate_rank=32, rngs=rngs
            )
        self.softmax = nnx.Linear(HIDDEN, vocab_size, rngs=rngs)

    def __call__(self, words):
        x = self.embedding(words).reshape(len(words), -1)
        return self.softmax(nnx.tanh(self.hidden(x)))


def train(name: str, sparsity: float | None, vocab_size: int, examples: np.ndarray, steps: int):
    """Adam on random batches of ``examples`` [n, CONTEXT + 1]; returns the mean loss of a batch as a function."""
    graph, params = nnx.split(FeedForwardLM(vocab_size, sparsity, nnx.Rngs(0)), nnx.Param)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    state = optimizer.init(params)

    def loss(params, batch):
        logits = nnx.merge(graph, params)(batch[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, -1]).mean()

    @jax.jit
    def step(params, state, batch):
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
        return optax.apply_updates(params, updates), state

    draw = np.random.default_rng(0)
    for _ in trange(steps, desc=name):
        params, state = step(params, state, examples[draw.integers(len(examples), size=BATCH)])
    # The parameters are an argument: those that a jitted function closes over become constants of its program.
    return functools.partial(jax.jit(loss), params)


def main(steps: int = 2000) -> dict[str, float]:
    """Trains both and prints the perplexity of each on text that it has not seen."""
    corpus = load_corpus(DataConfig(dataset="pydoc", vocab_limit=5000))
    seen, unseen = (np.lib.stride_tricks.sliding_window_view(ids, CONTEXT + 1) for ids in (corpus.train, corpus.valid))
    perplexities = {}
    for name, sparsity in (("dense", None), ("half of the blocks", 0.5)):
        loss = train(name, sparsity, len(corpus.vocabulary), seen, steps)
        batches = np.split(unseen[: len(unseen) // BATCH * BATCH], len(unseen) // BATCH)
        perplexities[name] = math.exp(np.mean([loss(batch) for batch in batches]))
        print(f"{name}: perplexity {perplexities[name]:.1f}")
    return perplexities


if __name__ == "__main__":
    main()
