# %% [markdown]
# # Digits: which blocks does an image use?
#
# The toy of the paper's authors: a network of 1024 x 1024 layers, each cut into 8 x 8 blocks of 128, of which every
# image keeps a tenth. This page trains it, draws which blocks each digit uses, and then takes the other way: a dense
# network is trained, converted without training, and evaluated at every budget.
#
#     pip install -e ".[examples]" && python examples/digits.py
#
# The images are the 8 x 8 digits that scikit-learn ships, so nothing is downloaded. `DATA=mnist` takes MNIST through
# TensorFlow Datasets, which downloads it and needs `pip install tensorflow` to prepare it.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import bwds

STEPS = int(os.environ.get("STEPS", "1000"))
WIDTH, BLOCK, LAYERS, BATCH = 1024, 128, 5, 64

# %% [markdown]
# ## Images
#
# A fifth of them is held out.


# %%
def load(name):
    """Images [n, K] of mean zero and variance one, and labels [n]: first those for training, then those held out."""
    if name == "mnist":
        import tensorflow_datasets as tfds

        builder = tfds.builder("mnist", file_format="array_record")
        builder.download_and_prepare()
        parts = [list(builder.as_data_source(split)) for split in ("train", "test")]
        images = [np.stack([item["image"].reshape(-1) for item in part]).astype(np.float32) for part in parts]
        labels = [np.array([item["label"] for item in part]) for part in parts]
    else:
        from sklearn.datasets import load_digits

        found, order = load_digits(), np.random.default_rng(0).permutation(1797)
        cut = order[:1440], order[1440:]
        images = [found.data[part].astype(np.float32) for part in cut]
        labels = [found.target[part] for part in cut]
    mean, deviation = images[0].mean(), images[0].std()
    return [(x - mean) / deviation for x in images], labels


(train_x, test_x), (train_y, test_y) = load(os.environ.get("DATA", "digits"))
print(f"{len(train_x)} images for training, {len(test_x)} held out, {train_x.shape[1]} pixels each")

# %% [markdown]
# ## The network
#
# `bwds.nn.BlockSparseLinear` stands where `nnx.Linear` would: the rest is the same. With `return_gates` it also says
# which blocks each image has used.


# %%
class Network(nnx.Module):
    """Logits [B, 10] of images [B, K], and the gates of every hidden layer, [B, 8, 8] each."""

    def __init__(self, hidden, rngs):
        self.first = nnx.Linear(train_x.shape[1], WIDTH, rngs=rngs)
        self.hidden = nnx.List([hidden(rngs) for _ in range(LAYERS)])
        self.last = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x):
        x, used = nnx.relu(self.first(x)), []
        for layer in self.hidden:
            y = layer(x)
            if isinstance(y, tuple):
                y, gates = y
                used.append(gates)
            x = nnx.relu(y)
        return self.last(x), used


def dense(rngs):
    return nnx.Linear(WIDTH, WIDTH, rngs=rngs)


def dynamic(rngs):
    return bwds.nn.BlockSparseLinear(
        WIDTH, WIDTH, sparsity=0.9, block_shape=(BLOCK, BLOCK), return_gates=True, rngs=rngs
    )


def train(network, steps):
    """Adam on random batches."""
    graph, params = nnx.split(network, nnx.Param)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))

    @jax.jit
    def step(params, state, x, labels):
        def loss(params):
            logits, _ = nnx.merge(graph, params)(x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state, draw = optimizer.init(params), np.random.default_rng(0)
    for _ in range(steps):
        batch = draw.integers(len(train_x), size=BATCH)
        params, state = step(params, state, train_x[batch], train_y[batch])
    return nnx.merge(graph, params)


def accuracy(network):
    logits, _ = nnx.jit(lambda network, x: network(x))(network, test_x)
    return float((logits.argmax(axis=1) == test_y).mean())


# %% [markdown]
# ## Dense, and with a tenth of the blocks

# %%
trained = {"dense": train(Network(dense, nnx.Rngs(0)), STEPS), "a tenth": train(Network(dynamic, nnx.Rngs(0)), STEPS)}
for name, network in trained.items():
    print(f"{name:8} accuracy {accuracy(network):.3f} on held-out images")

# %% [markdown]
# ## Which blocks does a digit use?
#
# Each row is a digit, each column one of the 64 blocks of a layer, the most used ones first; the colour is the share of
# the held-out images of this digit that keep the block. Rows that differ show a choice that follows the input.

# %%
_, used = nnx.jit(lambda network, x: network(x))(trained["a tenth"], test_x)
by_digit = {f"hidden_layer_{i + 1}": bwds.nn.usage_by_label(gates, test_y, 10) for i, gates in enumerate(used)}
figure = bwds.plots.usage_by_group(by_digit, [str(d) for d in range(10)], (BLOCK, BLOCK))
number = bwds.num_kept_blocks(64, 0.9)
figure.suptitle(f"Digits: the blocks that each of them uses ({number} of 64 for every image)", fontsize=10)
figure.axes[0].set_ylabel("digit")
figure.savefig("digits_usage.png")
figure

# %% [markdown]
# ## Convert the dense network
#
# `from_linear` makes a dense layer dynamic without training. The choice is not learned: the score of a block is
# the norm of its part of the input times its own norm, so one network serves every budget.


# %%
def converted(network, sparsity):
    """The network with every hidden layer made dynamic."""
    other = nnx.clone(network)
    other.hidden = nnx.List(
        bwds.nn.BlockSparseLinear.from_linear(layer, sparsity=sparsity, block_shape=(BLOCK, BLOCK))
        for layer in network.hidden
    )
    return other


budgets = (0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 0.9)
accuracies = [accuracy(converted(trained["dense"], sparsity)) for sparsity in budgets]
for sparsity, value in zip(budgets, accuracies, strict=True):
    print(f"{sparsity:5.3f} of the blocks omitted: accuracy {value:.3f}")

# %%
curve, axes = plt.subplots(figsize=(5.5, 3.5), layout="constrained")
axes.plot(budgets, accuracies, "o-", label="trained dense, then converted")
axes.plot([0.9], [accuracy(trained["a tenth"])], "s", label="trained with a tenth of the blocks")
axes.axhline(0.1, linestyle=":", color="grey", label="a guess")
axes.set(xlabel="share of the blocks omitted in every hidden layer", ylabel="accuracy on held-out images")
axes.set(title="Digits: accuracy at every budget of blocks", xlim=(-0.02, 1), ylim=(0, 1.02))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 0.12))
curve.savefig("digits_budgets.png")
