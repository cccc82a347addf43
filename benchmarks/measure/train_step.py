"""Time of one whole training step, block-wise dynamic against dense of the same size, in turns.

    python -m benchmarks.measure.train_step [PRESET ...] [--hidden 1536] [--sparsity 0.5 0.75 0.9]
                                           [--dtype float32 bfloat16] [--turns 9] [--output FILE]

The step is that of train.py: forward, backward, clipping and optimiser, on random tokens. --hidden replaces the width
of the preset; blocks are then of 128 if that divides the width, and otherwise of the preset's size. All sparsities of a
model take turns with the dense model and, for an LSTM on a CPU, with PyTorch's if torch is installed.

On a CPU the process keeps the memory that it frees, as that of train.py does; with MALLOC_TOP_PAD_=131072, glibc's
default, in the environment neither does.

The bound is six floating-point operations per token for each weight of the products, with all blocks and the gates, at
the measured rate of a large matmul: some row of a batch keeps every block.
"""

import dataclasses
import itertools

import jax
import numpy as np

from benchmarks.bounds import matmul_rate
from benchmarks.command import parser, require_positive, script
from benchmarks.lines import Results, fields
from benchmarks.measure.baselines import training
from bwds import PRESETS, cost, language_model, num_kept_blocks
from bwds.timing import require_turns, time_in_turns
from bwds.training.allocator import keep_freed_memory
from bwds.training.optim import make_optimizer
from bwds.training.step import init_state, train_step


def stepper(config, tokens):
    """A call that does one step and keeps the state."""
    lm, optimizer = language_model(config.model), make_optimizer(config.optim, config.train.steps)
    state = init_state(lm, optimizer, jax.random.key(0), batch_size=config.data.batch_size)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def step():
        nonlocal state
        state, metrics = train_step(lm, optimizer, state, inputs, targets, np.bool_(False), None)
        return metrics

    return step


def resized(preset, hidden, dtype):
    """The preset's configuration with another width and type, where they are not None; dense."""
    config = PRESETS[preset]
    changes = {"method": "dense", "dtype": dtype or config.model.dtype}
    if hidden is not None:
        changes |= {"hidden_size": hidden, "block_size": config.model.block_size if hidden % 128 else 128}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def dynamic(config, sparsity):
    """The same with gates, at the preset's own sparsity if it is None."""
    changes = {"method": "dynamic"} | ({} if sparsity is None else {"sparsity": sparsity})
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def measure(results, preset, dense, configs, turns, keeps_freed_memory):
    """Writes one line for each of the dynamic ``configs``, all from the same turns."""
    shape = (dense.data.batch_size, dense.data.sequence_length + 1)
    tokens = np.random.default_rng(0).integers(dense.model.vocab_size, size=shape, dtype=np.int32)
    rate = matmul_rate(dense.model.dtype)
    calls = {"dense": stepper(dense, tokens)} | training(dense, tokens)
    others = list(calls)
    calls |= {config.model.sparsity: stepper(config, tokens) for config in configs}
    times = time_in_turns(calls, turns=turns, least=0.0)
    for config in configs:
        mine = {name: times[name] for name in others} | {"dynamic": times[config.model.sparsity]}
        costs, number = cost(config), tokens[:, 1:].size
        results.write(
            "train_step",
            preset=preset,
            cell=config.model.cell,
            hidden=config.model.hidden_size,
            block=config.model.block_size,
            gate_rank=config.model.gate_rank,
            rows=config.data.batch_size,
            dtype=config.model.dtype,
            sparsity=config.model.sparsity,
            keeps_freed_memory=keeps_freed_memory,
            **fields(mine, "ms"),
            **{f"dynamic_over_{name}": mine["dynamic"].median / mine[name].median for name in others},
            tokens_per_second=number / mine["dynamic"].median,
            dense_bound_ms=6 * number * costs.dense / rate * 1e3,
            bound_ms=6 * number * (costs.dense + costs.gates) / rate * 1e3,
        )


def run(args):
    """All steps of the arguments."""
    keeps_freed_memory = keep_freed_memory()
    unknown = set(args.presets) - PRESETS.keys()
    if unknown:
        raise ValueError(f"Preset {', '.join(sorted(unknown))} is unknown; choose from {', '.join(PRESETS)}.")
    require_positive(args, "hidden")
    require_turns(args.turns)
    for sparsity in args.sparsity:
        if sparsity is not None:
            num_kept_blocks(1, sparsity)
    cases = []
    for preset, dtype, hidden in itertools.product(args.presets, args.dtype, args.hidden):
        dense = resized(preset, hidden, dtype)
        cases.append((preset, dense, [dynamic(dense, sparsity) for sparsity in args.sparsity]))
    results = Results(args.output)
    for case in cases:
        measure(results, *case, args.turns, keeps_freed_memory)


def main():
    options = parser(__doc__, hidden=[None], sparsity=[None], dtype=[None], turns=9)
    options.add_argument("presets", nargs="*", default=["ptb-lstm-small", "ptb-qrnn-small"], metavar="PRESET")
    run(options.parse_args())


if __name__ == "__main__":
    script(main)
