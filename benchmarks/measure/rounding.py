"""How far apart two training runs get that differ in rounding only: on one device, and on two that share the rows.

    python -m benchmarks.measure.rounding [PRESET] [--steps 40] [--activation linear softplus] [--output FILE]

Each step of the run on one device is repeated on two devices, from the same state. ``one_step`` is the relative
distance between the two changes of the parameters. While it is as small as rounding, nothing but rounding differs
between one device and two. ``two_devices`` is the relative distance to the parameters of a run on two devices that is
left to itself. ``nudged`` is the distance to a run on one device whose first parameters were changed by one part in ten
million. If these two grow alike, the model amplifies any difference, whatever its cause.

Text, optimiser and batches are those of the preset, without dropout.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.command import parser, require_positive, script
from benchmarks.lines import Results
from bwds import PRESETS, language_model
from bwds.data import load_corpus
from bwds.data.batches import train_batch
from bwds.training.devices import MeshConfig
from bwds.training.optim import make_optimizer
from bwds.training.sharding import make_placement
from bwds.training.step import init_state, train_step

NUDGE = 1e-7


def distance(one, other):
    """Norm of the difference of two trees, as a share of the first one's norm."""
    one, other = jax.device_get((one, other))
    return float(optax.tree.norm(jax.tree.map(np.subtract, one, other)) / optax.tree.norm(one))


def measure(results, preset, activation, steps):
    """A line for every step."""
    config = PRESETS[preset]
    corpus = load_corpus(config.data)
    tokens = len(corpus.vocabulary)
    model = dataclasses.replace(config.model, gate_activation=activation, dropout=0.0, vocab_size=tokens)
    lm, optimizer = language_model(model), make_optimizer(config.optim, config.train.steps)
    rows, window = config.data.batch_size, config.data.sequence_length
    fresh = partial(init_state, lm, optimizer, batch_size=rows)
    two = make_placement(MeshConfig(data=2), model, batch_size=rows)
    alone = fresh(jax.random.key(0))
    # A step donates its state, so each run needs a copy of its own.
    spread = jax.device_put(jax.tree.map(jnp.copy, alone), two.shardings(alone))
    noise = jax.random.normal(jax.random.key(1), (8, 4096))

    def nudged(leaf):
        return leaf * (1.0 + NUDGE * jnp.resize(noise, leaf.shape))

    changed = jax.tree.map(jnp.copy, alone)._replace(params=jax.tree.map(nudged, alone.params))

    def step(state, arrays, placement=None):
        if placement is not None:
            arrays = tuple(jax.device_put(a, placement.sharding(placement.rows)) for a in arrays)
        return train_step(lm, optimizer, state, *arrays, np.bool_(False), None, placement)

    for number in range(1, steps + 1):
        batch = train_batch(corpus.train, number - 1, batch_size=rows, sequence_length=window)
        tokens = batch.inputs, batch.targets
        before = jax.device_get(alone.params)
        there = jax.device_put(jax.tree.map(jnp.copy, alone), two.shardings(alone))
        there, _ = step(there, tokens, two)
        alone, metrics = step(alone, tokens)
        spread, _ = step(spread, tokens, two)
        changed, _ = step(changed, tokens)
        moved = [jax.tree.map(np.subtract, jax.device_get(s.params), before) for s in (alone, there)]
        results.write(
            "rounding",
            preset=preset,
            activation=activation,
            step=number,
            loss=float(metrics.loss),
            gradient_norm=float(metrics.gradient_norm),
            one_step=distance(*moved),
            two_devices=distance(alone.params, spread.params),
            nudged=distance(alone.params, changed.params),
        )


def main():
    options = parser(__doc__)
    options.add_argument("preset", nargs="?", default="quick", choices=PRESETS)
    options.add_argument("--steps", type=int, default=40)
    options.add_argument("--activation", nargs="+", choices=["linear", "softplus"], default=["linear", "softplus"])
    args = options.parse_args()
    require_positive(args, "steps")
    if jax.device_count() < 2:
        raise ValueError("There is one device; on a CPU, JAX_NUM_CPU_DEVICES=2 makes two.")
    results = Results(args.output)
    for activation in args.activation:
        measure(results, args.preset, activation, args.steps)


if __name__ == "__main__":
    script(main)
