"""Time of one token of every variant of the grid, at the paper's size, where skipping pays.

    python -m benchmarks.quality.variant_times [--preset ptb-lstm ptb-qrnn] [--steps 8] [--turns 9] [--output FILE]

One stream is decoded greedily, from the embedding to the most probable token, gate and choice included. Parameters are
random, because the time does not depend on their values; all variants of a preset take turns. docs/results.md draws
these times beside the perplexities of the preset for CPU cores.
"""

import json
from pathlib import Path

import jax

from benchmarks.command import parser, require_positive, script
from benchmarks.lines import Results, fields
from benchmarks.measure.decode import parameters
from benchmarks.quality.grid import PAPER, SEEDS, SMALL, Cell, variants
from bwds import cost
from bwds.decode_speed import decoding
from bwds.timing import require_turns, time_in_turns

FILE = "cpu_variant_times.jsonl"
"""Name of the committed lines in benchmarks/results."""


def measure(results: Results, preset: str, *, steps: int, turns: int) -> None:
    """Writes a line for each variant."""
    configs = {name: Cell(preset, name, SEEDS[0], options).config().model for name, options in variants(preset).items()}
    calls = {
        name: decoding(config, parameters(config)(jax.random.key(0)), steps=steps) for name, config in configs.items()
    }
    times = time_in_turns(calls, turns=turns, least=0.0)
    for name, config in configs.items():
        one = type(times[name])(t / steps for t in times[name])
        counted = cost(config)
        results.write(
            "variant_decode",
            preset=preset,
            variant=name,
            hidden=config.hidden_size,
            **fields({"token": one}),
            dense_ratio=times[name].median / times["dense"].median,
            multiply_adds=counted.total,
            bytes_read=counted.bytes_read,
        )


def relative_times(results_dir: Path) -> dict[str, dict[str, float]]:
    """The time of each variant over that of dense, by the preset for CPU cores that stands beside the paper's."""
    path, small = results_dir / FILE, dict(zip(PAPER, SMALL, strict=True))
    found: dict[str, dict[str, float]] = {preset: {} for preset in SMALL}
    for line in map(json.loads, path.read_text().splitlines() if path.exists() else []):
        if line["benchmark"] == "variant_decode":
            found[small[line["preset"]]][line["variant"]] = line["dense_ratio"]
    return found


def main() -> None:
    """The command line."""
    options = parser(__doc__, turns=9)
    options.add_argument("--preset", nargs="+", choices=PAPER, default=list(PAPER))
    options.add_argument("--steps", type=int, default=8, help="tokens of one rollout")
    args = options.parse_args()
    require_positive(args, "steps")
    require_turns(args.turns)
    results = Results(args.output)
    for preset in args.preset:
        measure(results, preset, steps=args.steps, turns=args.turns)


if __name__ == "__main__":
    script(main)
