"""Where the time of a token goes, on a CPU: a trace of greedy decoding, its operations sorted by their purpose.

    python -m benchmarks.measure.token_profile [--cell lstm qrnn] [--hidden 1536] [--sparsity 0.5 0.75 0.9]
                                             [--gate-rank RANK] [--output FILE]

A token of a rollout is one turn of a compiled loop. The trace has a time for every operation in it, and the program's
text tells from which part of the model each comes: scores of the gates, choice (the threshold among the scores, the
gates' values, and the mask), product (of the kept blocks, with their list), softmax (and the most probable token), rest
(embedding, arithmetic of the cell, copies). Tracing takes time itself, most of all with small operations, so the time
of a token without a trace stands beside the sum. Run it on one core, where nothing overlaps.
"""

import collections
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.command import parser, require_positive, script
from benchmarks.lines import Results, fields
from benchmarks.measure.decode import parameters
from benchmarks.pod.hlo import Instruction, Program, parse
from bwds import ModelConfig, language_model, num_kept_blocks
from bwds.generate import greedy_rollout
from bwds.timing import time_in_turns

STEPS, TOKENS = 16, 10_000
PARTS = ("scores", "choice", "product", "softmax", "rest")


def loop_over_tokens(program: Program) -> Instruction:
    """The loop that turns once per token. Raises ``ValueError`` if there is no such loop."""
    loops = [found for found in program.computations[program.entry].values() if found.opcode == "while"]
    for loop in loops:
        if f'"known_trip_count":{{"n":"{STEPS}"}}' in loop.attributes:
            return loop
    raise ValueError(f"The program has no loop over its {STEPS} tokens; is it that of a rollout?")


def part_of(instruction: Instruction) -> str:
    """Which part of the model an operation of the loop belongs to."""
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    source = found[1] if found else ""
    if instruction.opcode == "dot" or source.endswith("/dot_general"):
        # The compiler drops the source of some dots. Only the softmax's dot has a column for every token.
        if any(array.bytes == 4 * TOKENS for array in instruction.arrays):
            return "softmax"
        return "product" if "jit(product)" in source else "scores"
    if "jit(product)" in source:
        return "product"
    if "jit(gated_matmul)" in source or "jit(largest)" in source:
        return "choice"
    return "softmax" if "greedy_rollout.<locals>.step" in source else "rest"


def traced(call) -> collections.Counter[str]:
    """Microseconds of every operation, by its name, in one call."""
    times: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            for line in plane.lines:
                for event in line.events:
                    times[event.name] += event.duration_ns / 1e3
    return times


def profile(config: ModelConfig) -> tuple[dict, dict[str, float]]:
    """The time of a token without a trace, as fields; and microseconds of its parts with a trace."""
    lm, params = language_model(config), parameters(config)(jax.random.key(0))
    arguments = lm, params, jnp.zeros(1, jnp.int32), lm.init_carry(1)
    text = greedy_rollout.lower(*arguments, steps=STEPS).compile().as_text()
    program = parse(text)
    body = program.computations[loop_over_tokens(program).called("body") or ""]

    def call():
        return greedy_rollout(*arguments, steps=STEPS)

    times = time_in_turns({"token": call}, least=0.0)
    seen = traced(call)
    parts = dict.fromkeys(PARTS, 0.0)
    for name, instruction in body.items():
        parts[part_of(instruction)] += seen[name] / STEPS
    return fields({name: type(t)(q / STEPS for q in t) for name, t in times.items()}), parts


def run(args):
    """All models of the arguments."""
    require_positive(args, "hidden", "block", "gate_rank")
    for sparsity in args.sparsity:
        num_kept_blocks(1, sparsity)
    if jax.default_backend() != "cpu":
        raise ValueError(f"JAX runs on {jax.default_backend()}; the trace is read as that of a CPU: JAX_PLATFORMS=cpu.")
    results = Results(args.output)
    for cell in args.cell:
        for hidden in args.hidden:
            for sparsity in args.sparsity:
                config = ModelConfig(
                    cell=cell,
                    hidden_size=hidden,
                    block_size=args.block,
                    gate_rank=args.gate_rank,
                    sparsity=sparsity,
                    vocab_size=TOKENS,
                )
                token, parts = profile(config)
                results.write(
                    "token_profile",
                    cell=cell,
                    hidden=hidden,
                    layers=config.num_layers,
                    vocab=config.vocab_size,
                    block=config.block_size,
                    gate_rank=args.gate_rank,
                    sparsity=sparsity,
                    batch=1,
                    dtype=config.dtype,
                    **token,
                    traced_us=sum(parts.values()),
                    **{f"{name}_us": value for name, value in parts.items()},
                )


def main():
    run(
        parser(
            __doc__, cell=["lstm", "qrnn"], hidden=[1536], sparsity=[0.5, 0.75, 0.9], block=128, gate_rank=None
        ).parse_args()
    )


if __name__ == "__main__":
    script(main)
