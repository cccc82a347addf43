"""Time of one whole training step, block-wise dynamic against dense of the same size, in turns.

    python benchmarks/train_step.py [PRESET ...] [--output FILE] [--turns 9]

The step is that of train.py: forward, backward, clipping and optimiser, on random tokens.
"""

import argparse
import dataclasses

import jax
import numpy as np
from common import Results, time_in_turns

from bwds import PRESETS, language_model
from bwds.optim import make_optimizer
from bwds.state import init_state, train_step


def stepper(config, method):
    """A call that does one step and keeps the state."""
    model = dataclasses.replace(config.model, method=method)
    lm, optimizer = language_model(model), make_optimizer(config.optim, config.train.steps)
    state = jax.jit(lambda: init_state(lm, optimizer, jax.random.key(0), batch_size=config.data.batch_size))()
    shape = (config.data.batch_size, config.data.sequence_length + 1)
    tokens = np.random.default_rng(0).integers(model.vocab_size, size=shape, dtype=np.int32)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def step():
        nonlocal state
        state, metrics = train_step(lm, optimizer, state, inputs, targets, np.bool_(False), None)
        return metrics

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["ptb-lstm-small", "ptb-qrnn-small"], metavar="PRESET")
    parser.add_argument("--output", help="JSONL file that results are appended to")
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    unknown = set(args.presets) - PRESETS.keys()
    if unknown:
        parser.error(f"unknown preset {', '.join(sorted(unknown))}; choose from {', '.join(PRESETS)}")
    results = Results(args.output)
    for name in args.presets:
        config = PRESETS[name]
        times = time_in_turns({m: stepper(config, m) for m in ("dense", "dynamic")}, turns=args.turns, least=0.0)
        results.write(
            "train_step",
            preset=name,
            sparsity=config.model.sparsity,
            **{f"{m}_ms": t.median * 1e3 for m, t in times.items()},
            **{f"{m}_quartiles_ms": [round(q * 1e3, 1) for q in t] for m, t in times.items()},
            dynamic_over_dense=times["dynamic"].median / times["dense"].median,
        )


if __name__ == "__main__":
    main()
