"""Time of one whole training step, block-wise dynamic against dense of the same size, in turns.

    python benchmarks/train_step.py [PRESET ...] [--dtype float32 bfloat16] [--output FILE] [--turns 9]

The step is that of train.py: forward, backward, clipping and optimiser, on random tokens. The bound is six floating-
point operations a token for each weight of the products, all blocks and the gates, at the measured rate of a large
matmul: over a batch every block is kept by some row.
"""

import argparse
import dataclasses

import jax
import numpy as np
from common import Results, fields, matmul_rate, time_in_turns

from bwds import PRESETS, cost, language_model
from bwds.optim import make_optimizer
from bwds.state import init_state, train_step


def stepper(config):
    """A call that does one step and keeps the state."""
    lm, optimizer = language_model(config.model), make_optimizer(config.optim, config.train.steps)
    state = init_state(lm, optimizer, jax.random.key(0), batch_size=config.data.batch_size)
    shape = (config.data.batch_size, config.data.sequence_length + 1)
    tokens = np.random.default_rng(0).integers(config.model.vocab_size, size=shape, dtype=np.int32)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def step():
        nonlocal state
        state, metrics = train_step(lm, optimizer, state, inputs, targets, np.bool_(False), None)
        return metrics

    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=["ptb-lstm-small", "ptb-qrnn-small"], metavar="PRESET")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], help="default: that of the preset")
    parser.add_argument("--output", help="JSONL file that results are appended to")
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    unknown = set(args.presets) - PRESETS.keys()
    if unknown:
        parser.error(f"unknown preset {', '.join(sorted(unknown))}; choose from {', '.join(PRESETS)}")
    if args.turns < 2:
        parser.error(f"--turns is {args.turns}; quartiles need at least 2")
    results = Results(args.output)
    for name in args.presets:
        for dtype in args.dtype or [PRESETS[name].model.dtype]:
            rate = matmul_rate(dtype=dtype)
            configs = {
                method: dataclasses.replace(
                    PRESETS[name], model=dataclasses.replace(PRESETS[name].model, method=method, dtype=dtype)
                )
                for method in ("dense", "dynamic")
            }
            config = configs["dynamic"]
            calls = {method: stepper(config) for method, config in configs.items()}
            times = time_in_turns(calls, turns=args.turns, least=0.0)
            costs, tokens = cost(config), config.data.batch_size * config.data.sequence_length
            results.write(
                "train_step",
                preset=name,
                cell=config.model.cell,
                hidden=config.model.hidden_size,
                rows=config.data.batch_size,
                dtype=dtype,
                sparsity=config.model.sparsity,
                **fields(times, "ms"),
                dynamic_over_dense=times["dynamic"].median / times["dense"].median,
                tokens_per_second=tokens / times["dynamic"].median,
                dense_bound_ms=6 * tokens * costs.dense / rate * 1e3,
                bound_ms=6 * tokens * (costs.dense + costs.gates) / rate * 1e3,
            )


if __name__ == "__main__":
    main()
