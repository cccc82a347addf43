"""Where the time of a token and of a training step goes on an accelerator: a trace, its kernels by time.

    python -m benchmarks.measure.device_profile [--hidden 4096] [--dtype bfloat16 float32] [--sparsity 0.5 0.75]
                                               [--gate-rank 128] [--preset ptb-lstm] [--output FILE]

It traces greedy decoding of the LSTM, dense and at each sparsity, and training steps of the preset, dense and dynamic.
Each gets one line: launches per step, the time that kernels were running, the time between the first and the last of
them, and the kernels with the most time, each with its launches and microseconds per step. On a CPU the operations of
all threads stand in for kernels; ``token_profile`` tells more there.
"""

import collections
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.command import parser, require_positive, script
from benchmarks.lines import Results
from benchmarks.measure.decode import parameters
from benchmarks.measure.train_step import dynamic, resized, stepper
from bwds import PRESETS, ModelConfig, language_model
from bwds.generate import greedy_rollout

TOKENS, STEPS, SHOWN = 32, 4, 24


def is_of_kernels(plane: str, line: str) -> bool:
    """Whether a line of a trace shows what the device executed: streams of a GPU, operations of a TPU."""
    if jax.default_backend() == "cpu":
        return plane.startswith("/host") and "python" not in line.lower()
    return plane.startswith("/device") and (line.startswith("Stream") or line == "XLA Ops")


def traced(call, repeats: int):
    """(events by name, microseconds between the first start and the last end) of some calls, compiled and warm."""
    jax.block_until_ready(call())
    events, starts, ends = collections.defaultdict(list), [], []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                out = call()
            jax.block_until_ready(out)
        (path,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                if is_of_kernels(plane.name, line.name):
                    for event in line.events:
                        events[event.name].append(event.duration_ns / 1e3)
                        starts.append(event.start_ns / 1e3)
                        ends.append(event.start_ns / 1e3 + event.duration_ns / 1e3)
    return events, max(ends, default=0.0) - min(starts, default=0.0)


def profile(results, call, repeats: int, steps: int, **what):
    """One line; ``steps`` are those of all calls."""
    events, span = traced(call, repeats)
    ranked = sorted(events.items(), key=lambda item: -sum(item[1]))
    results.write(
        "profile",
        **what,
        launches=sum(map(len, events.values())) / steps,
        kernels_us=sum(map(sum, events.values())) / steps,
        span_us=span / steps,
        kernels=[
            [name[:80], round(len(times) / steps, 2), round(sum(times) / steps, 3)] for name, times in ranked[:SHOWN]
        ],
    )


def run(args):
    """All models of the arguments."""
    require_positive(args, "hidden", "gate_rank", "vocab", "block")
    results = Results(args.output)
    for dtype in args.dtype:
        for sparsity in (None, *args.sparsity):
            config = ModelConfig(
                vocab_size=args.vocab,
                hidden_size=args.hidden,
                block_size=args.block,
                gate_rank=args.gate_rank,
                dtype=dtype,
                method="dense" if sparsity is None else "dynamic",
                sparsity=0.5 if sparsity is None else sparsity,
            )
            lm, params = language_model(config), parameters(config)(jax.random.key(0))
            arguments = lm, params, jnp.zeros(1, jnp.int32), lm.init_carry(1)
            profile(
                results,
                lambda arguments=arguments: greedy_rollout(*arguments, steps=TOKENS),
                1,
                TOKENS,
                of="token",
                hidden=args.hidden,
                dtype=dtype,
                sparsity=sparsity,
            )
    for preset in args.preset:
        dense = resized(preset, None, None)
        shape = (dense.data.batch_size, dense.data.sequence_length + 1)
        tokens = np.random.default_rng(0).integers(dense.model.vocab_size, size=shape, dtype=np.int32)
        for config in (dense, dynamic(dense, 0.5)):
            name = config.model.method
            profile(results, stepper(config, tokens), STEPS, STEPS, of="training step", preset=preset, method=name)


def main():
    options = parser(
        __doc__,
        hidden=4096,
        vocab=10_000,
        block=128,
        sparsity=[0.5, 0.75],
        dtype=["bfloat16", "float32"],
        gate_rank=128,
    )
    options.add_argument("--preset", nargs="*", default=["ptb-lstm"], help="whose training steps to trace")
    args = options.parse_args()
    if unknown := set(args.preset) - PRESETS.keys():
        raise ValueError(f"Preset {', '.join(sorted(unknown))} is unknown; choose from {', '.join(PRESETS)}.")
    run(args)


if __name__ == "__main__":
    script(main)
