"""Does skipping blocks pay on this machine, and from which width on?

    bwds bench [--hidden 512 1024 2048] [--sparsity 0.5 0.75 0.9] [--dtype float32]

Whole models write greedily, one token after another at batch 1, dense and with blocks skipped, in turns: LSTMs of two
layers, gates, choice of blocks and softmax included. Parameters are random: speed does not depend on their values.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tyro

from bwds.cli import parsed
from bwds.config import Dtype, ModelConfig
from bwds.output import say

UNSTEADY = 0.25
"""Distance of the quartiles, as a share of the median, above which a ratio says little."""


@dataclass(frozen=True)
class Options:
    hidden: tuple[int, ...] = (512, 1024, 2048)
    """Widths of the models. In float32 a model of width H takes 64 H^2 bytes for its layers and 8 H for each token of
    the vocabulary; two models are held at a time."""
    sparsity: tuple[float, ...] = (0.5, 0.75, 0.9)
    """Fractions of the blocks that are skipped."""
    block_size: int = 128
    """Rows and columns of a block."""
    gate_rank: int | None = 64
    """Rank of the gates; None: full."""
    vocab: int = 10_000
    """Tokens in the vocabulary."""
    dtype: Dtype = "float32"
    """Compute type of the products."""
    steps: int = 4
    """Tokens of one measurement."""
    turns: int = 5
    """Measurements of each model, of which the median counts; at least 3."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command ``bwds bench``. Raises what ``bwds.cli.run`` answers."""
    options = parsed(lambda: tyro.cli(Options, args=arguments, prog="bwds bench", description=__doc__))
    # All widths are checked before the first is timed, so that a mistake in the last one is reported at once.
    dynamic = {hidden: model(options, hidden) for hidden in options.hidden}

    # Imported late, so that --help and mistakes are answered at once.
    import jax

    from bwds.checks import require, require_at_least
    from bwds.timing import require_turns, verdict
    from pallas_kernels.threads import cores

    require(bool(dynamic) and bool(options.sparsity), "--hidden and --sparsity need at least one value each.")
    require_at_least(1, steps=options.steps)
    require_turns(options.turns)
    device = jax.devices()[0]
    say(f"{device.device_kind} ({device.platform}), {cores()} cores, jax {jax.__version__}: tokens a second, batch 1.")
    found: dict[float, dict[int, float]] = {sparsity: {} for sparsity in options.sparsity}
    spread = 0.0
    for hidden, config in dynamic.items():
        times = measure(config, options.sparsity, steps=options.steps, turns=options.turns)
        spread = max(spread, *((time[2] - time[0]) / time.median for time in times.values()))
        seconds = {name: time.median / options.steps for name, time in times.items()}
        dense = seconds.pop("dense")
        shown = [f"2 x {hidden:<5} dense {1 / dense:8,.1f}"]
        for sparsity, time in seconds.items():
            found[sparsity][hidden] = dense / time
            shown.append(f"{sparsity:g} skipped {1 / time:8,.1f} ({dense / time:.2f}x)")
        say("   ".join(shown))
    say(verdict(found, "the dense model of the same size"))
    if spread > UNSTEADY:
        say(
            f"The machine is busy: the quartiles of a model's times lie {spread:.0%} of the median apart. Repeat this "
            f"with less running beside it, or with more --turns than {options.turns}."
        )


def model(options: Options, hidden: int) -> ModelConfig:
    """The dynamic model of a width; ``ValueError`` if the options make no model at one of the sparsities."""
    config = ModelConfig(
        vocab_size=options.vocab,
        hidden_size=hidden,
        block_size=options.block_size,
        gate_rank=options.gate_rank,
        gate_activation="softplus",
        dtype=options.dtype,
    )
    for sparsity in options.sparsity:
        dataclasses.replace(config, sparsity=sparsity)
    return config


def measure(config: ModelConfig, sparsities: Sequence[float], *, steps: int, turns: int) -> dict[Any, Any]:
    """The ``Timing`` of a rollout at batch 1, of the model "dense" and at each sparsity, timed in turns.

    Args:
        config: the dynamic model; its own sparsity does not count.
        sparsities: those that are timed.
        steps: tokens of one measurement.
        turns: measurements of each model.
    """
    import jax

    from bwds.decode_speed import decoding
    from bwds.model import decode_params, language_model
    from bwds.timing import time_in_turns

    def parameters(config: ModelConfig) -> Any:
        # One program, which keeps no second copy of the parameters.
        return jax.jit(lambda key: decode_params(language_model(config).init(key), config))(jax.random.key(0))

    dense, params = dataclasses.replace(config, method="dense"), parameters(config)
    calls: dict[Any, Callable[[], Any]] = {"dense": decoding(dense, parameters(dense), steps=steps)}
    calls |= {s: decoding(dataclasses.replace(config, sparsity=s), params, steps=steps) for s in sparsities}
    return time_in_turns(calls, turns=turns, least=0.0)
