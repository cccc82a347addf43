"""The parts of ``hardware``: which benchmarks it runs, in order of value, and how long each may take."""

from typing import NamedTuple


class Part(NamedTuple):
    """A module of ``benchmarks`` and its arguments.

    ``seconds`` are expected, and three times as many, at least 90, are its limit.
    A part without ``seconds`` takes the time that is left, and is told how much that is.
    """

    name: str
    tells: str
    seconds: int | None
    command: str


LARGE = (
    Part("right", "every kernel against float64 on the device", 90, "measure.correctness"),
    Part(
        "products",
        "products of decoding against dense, H 4096",
        40,
        "measure.kernels decode --hidden 4096 --dtype bfloat16 float32 --gate-rank 128",
    ),
    Part(
        "models",
        "whole LSTMs of 2 x 4096, and cuDNN's",
        60,
        "measure.decode --cell lstm --hidden 4096 --batch 1 --sparsity 0.5 0.75 --dtype bfloat16 float32 "
        "--gate-rank 128 --gate-source learned norm --steps 64",
    ),
    Part(
        "steps", "training steps of ptb-lstm", 50, "measure.train_step ptb-lstm --sparsity 0.5 --dtype float32 bfloat16"
    ),
    Part(
        "batched",
        "products of training and their gradients, H 1536",
        40,
        "measure.kernels batched --rows 128 2240 --dtype float32 bfloat16 --sparsity 0.5",
    ),
    Part("profile", "which kernels a token and a training step take", 40, "measure.device_profile"),
    Part(
        "other-products",
        "products of decoding, H 1536 and 8192",
        60,
        "measure.kernels decode --hidden 1536 8192 --dtype bfloat16 float32 --gate-rank 128",
    ),
    Part("rival", "jax.lax.ragged_dot on the kept blocks", 30, "measure.ragged --hidden 1536 4096"),
    Part("table", "the paper's comparison: ptb-lstm dense, dynamic and pruned", None, "quality.paper_table"),
    Part("small-table", "the comparison at 2 x 256, eight models at a time", None, "quality.small_table"),
)
SMALL = (
    Part("right", "every product against float64", 60, "measure.correctness --small"),
    Part(
        "products",
        "products of decoding against dense, H 512",
        10,
        "measure.kernels decode --hidden 512 --few-rows 1 4 --sparsity 0.5 0.9 --rotate-mib 32",
    ),
    Part(
        "models",
        "whole LSTMs of 2 x 512",
        15,
        "measure.decode --cell lstm --hidden 512 --batch 1 --sparsity 0.5 0.9 --vocab 2000 --turns 5",
    ),
    Part("steps", "training steps of quick", 40, "measure.train_step quick --sparsity 0.5 --turns 3"),
    Part(
        "batched",
        "products of training and their gradients, H 256",
        10,
        "measure.kernels batched --hidden 256 --block 32 --rows 64 --sparsity 0.5",
    ),
    Part(
        "profile",
        "which operations a token takes",
        15,
        "measure.device_profile --hidden 256 --block 32 --vocab 1000 --sparsity 0.5 --dtype float32 --gate-rank 16 "
        "--preset",
    ),
    Part("rival", "jax.lax.ragged_dot on the kept blocks", 15, "measure.ragged --hidden 256 --block 32"),
    Part(
        "pays",
        "tokens a second by width: from where on skipping pays",
        60,
        "measure.decode --cell lstm --hidden 512 1024 2048 4096 --batch 1 --gate-rank 64 --steps 2 --turns 3",
    ),
    Part(
        "table",
        "the paper's comparison, rehearsed: some steps of ptb-lstm-small",
        None,
        "quality.paper_table --preset ptb-lstm-small --epoch-steps 20",
    ),
    Part(
        "small-table",
        "the comparison at 2 x 256, rehearsed: two cells of some steps",
        None,
        "quality.small_table --jobs 2 --epochs 1 --epoch-steps 20 ptb-lstm-small/dense/seed2 "
        "ptb-lstm-small/magnitude-0.5/seed2",
    ),
)


def chosen(parts: tuple[Part, ...], only: list[str] | None, after: str | None) -> list[Part]:
    """The parts that the arguments name. Raises ``ValueError`` for the name of no part."""
    names = [part.name for part in parts]
    for name in [*(only or []), *filter(None, [after])]:
        if name not in names:
            raise ValueError(f"There is no part {name!r} here; the parts are {', '.join(names)}.")
    if after is not None:
        parts = parts[names.index(after) + 1 :]
    return [part for part in parts if only is None or part.name in only]
