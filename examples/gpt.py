# %% [markdown]
# # A small GPT with block-sparse feed-forward layers
#
# A transformer in Flax NNX whose feed-forward layers are block-wise dynamic: each token keeps half of the blocks of
# both matrices. It is trained three ways on the documentation of Python (nothing is downloaded): dense, with half of
# the blocks from the start, and dense first, then converted without training.
#
#     pip install -e ".[examples]" && python examples/gpt.py

# %%
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import bwds
from bwds.config import DataConfig
from bwds.data import load_corpus

STEPS = int(os.environ.get("STEPS", "300"))
WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 128, 4, 2, 64, 16

# %% [markdown]
# ## Text

# %%
corpus = load_corpus(DataConfig(dataset="pydoc", vocab_limit=4000))
VOCABULARY = len(corpus.vocabulary)
print(f"{len(corpus.train):,} tokens for training, {len(corpus.valid):,} held out, {VOCABULARY:,} in the vocabulary")

# %% [markdown]
# ## The model
#
# `linear(K, N, rngs)` makes the two matrices of a feed-forward layer. It is `nnx.Linear` for the dense model, and
# `bwds.nn.BlockSparseLinear` for the other: nothing else differs.


# %%
class Block(nnx.Module):
    """Attention to the tokens before, and a feed-forward layer of four times the width, on x [B, T, WIDTH]."""

    def __init__(self, linear, rngs):
        self.before_attention, self.before_forward = (nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.up, self.down = linear(WIDTH, 4 * WIDTH, rngs), linear(4 * WIDTH, WIDTH, rngs)

    def __call__(self, x):
        x = x + self.attention(self.before_attention(x), mask=nnx.make_causal_mask(x[:, :, 0]))
        return x + self.down(nnx.gelu(self.up(self.before_forward(x))))


class GPT(nnx.Module):
    """Logits [B, T, V] of the next token, from tokens [B, T]."""

    def __init__(self, linear, rngs):
        self.tokens, self.positions = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs), nnx.Embed(CONTEXT, WIDTH, rngs=rngs)
        self.blocks = nnx.List([Block(linear, rngs) for _ in range(LAYERS)])
        self.last = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, tokens):
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))[None]
        for block in self.blocks:
            x = block(x)
        return self.tokens.attend(self.last(x))


def dense(k, n, rngs):
    return nnx.Linear(k, n, rngs=rngs)


def half_of_the_blocks(k, n, rngs):
    return bwds.nn.BlockSparseLinear(k, n, sparsity=0.5, block_shape=(32, 32), gate_source="norm", rngs=rngs)


# %% [markdown]
# ## Training and evaluation


# %%
def windows(ids, rng=None):
    """Windows of CONTEXT + 1 tokens [n, CONTEXT + 1]: BATCH at random, or all of the text in order."""
    if rng is not None:
        starts = rng.integers(len(ids) - CONTEXT, size=BATCH)
        return ids[starts[:, None] + np.arange(CONTEXT + 1)]
    starts = np.arange(0, len(ids) - CONTEXT, CONTEXT)
    return ids[starts[:, None] + np.arange(CONTEXT + 1)]


def loss(model, batch):
    """Mean cross-entropy, in nats a token."""
    return optax.softmax_cross_entropy_with_integer_labels(model(batch[:, :-1]), batch[:, 1:]).mean()


def train(model, steps):
    graph, params = nnx.split(model, nnx.Param)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(3e-3, steps)))

    @jax.jit
    def step(params, state, batch):
        gradients = jax.grad(lambda params: loss(nnx.merge(graph, params), batch))(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(0)
    for _ in range(steps):
        params, state = step(params, state, windows(corpus.train, rng))
    return nnx.merge(graph, params)


def perplexity(model):
    held_out = windows(corpus.valid)[: 16 * BATCH]
    mean = nnx.jit(loss)
    return math.exp(np.mean([mean(model, batch) for batch in held_out.reshape(-1, BATCH, CONTEXT + 1)]))


# %% [markdown]
# ## From scratch

# %%
trained = {linear.__name__: train(GPT(linear, nnx.Rngs(0)), STEPS) for linear in (dense, half_of_the_blocks)}
for name, model in trained.items():
    print(f"{name:20} perplexity {perplexity(model):.1f}")

# %% [markdown]
# ## A dense model, converted
#
# `from_linear` takes the trained matrices as they are and keeps the blocks with the largest norms of input times
# weight: no gate, no training, and any budget.


# %%
def converted(model, sparsity):
    """The model with both matrices of every feed-forward layer made dynamic."""
    other = nnx.clone(model)
    for block in other.blocks:
        for name in ("up", "down"):
            layer = bwds.nn.BlockSparseLinear.from_linear(getattr(block, name), sparsity=sparsity, block_shape=(32, 32))
            setattr(block, name, layer)
    return other


for sparsity in (0.0, 0.25, 0.5, 0.75):
    print(f"{sparsity:4} of the blocks omitted: perplexity {perplexity(converted(trained['dense'], sparsity)):.1f}")
