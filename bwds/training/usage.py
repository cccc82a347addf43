"""Which blocks a dynamic model keeps over a text, and its perplexity when other blocks are kept."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bwds.array_types import Array, Bool, Float, Int32
from bwds.budgets import matrix_sparsity
from bwds.config import DataConfig, ModelConfig
from bwds.counterfactual import apply_choosing, chance_overlap, gated_matrices, kept_of_each, most_used, overlap
from bwds.counts import kept_count
from bwds.data.batches import EvalBatch, eval_batches
from bwds.linear import Params
from bwds.losses import cross_entropy
from bwds.model import language_model

IN_ONE_PASS = ("own", "other token", "step before", "hindsight")
CHOICES = (*IN_ONE_PASS[:1], "most frequent", *IN_ONE_PASS[1:])
"""The choices of blocks that are compared, as ``measure_usage`` describes them."""


class MatrixUsage(NamedTuple):
    """How one gated matrix was used.

    Attributes:
        used: share of the inputs that kept each block, float64 [R, C].
        num_kept: blocks that every input kept.
        overlap_before: mean Jaccard overlap of the blocks of an input with those of the step before it.
        overlap_other: the same with the blocks of another token of the same window, drawn at random.
        overlap_chance: the same for two sets of as many blocks that are drawn at random, independently of each other.
        by_group: ``used`` over the inputs of each group of tokens, [G, R, C]; NaN for a group that does not occur.
    """

    used: Float[np.ndarray, "R C"]
    num_kept: int
    overlap_before: float
    overlap_other: float
    overlap_chance: float
    by_group: Float[np.ndarray, "G R C"]

    @property
    def nearly_always(self) -> float:
        """Share of the blocks that more than 95% of the inputs kept."""
        return float((self.used > 0.95).mean())

    @property
    def nearly_never(self) -> float:
        """Share of the blocks that fewer than 5% of the inputs kept."""
        return float((self.used < 0.05).mean())


class TextUsage(NamedTuple):
    """The result of ``measure_usage``: tokens, loss in nats per token by choice of blocks, and usage by matrix."""

    tokens: int
    losses: dict[str, float]
    matrices: dict[str, MatrixUsage]


def measure_usage(
    params: Params,
    config: ModelConfig,
    ids: Int32[np.ndarray, " n"],
    data: DataConfig,
    eos_id: int,
    *,
    counterfactuals: bool = False,
    groups: Int32[np.ndarray, " V"] | None = None,
    seed: int = 0,
    follow: Callable[[Sequence[EvalBatch], str], Iterable[EvalBatch]] = lambda batches, _: batches,
) -> TextUsage:
    """Reads a text as ``evaluate`` does, every token once, and counts the blocks that are kept.

    With ``counterfactuals`` it also reads the text with other choices of as many blocks, each with a carry of its own:

        own            those with the largest scores: the model as it is.
        most frequent  in every matrix the same blocks for all inputs: those that most inputs of this text kept.
        other token    those that the model chose for another token of the same window. The same token stands in for
                       all matrices. New pairs are drawn for every window; each token stands in for exactly one.
        step before    those that the model chose for the token before; for the first of a text its own.
        hindsight      those that add the vectors of largest norm to the product: ``apply_choosing`` has the equation.

    In all of them the values of kept gates come from the scores of the input at hand. The blocks that stand in come
    from the model as it reads the text with its own choices.

    Example:
        ```python
        from bwds.data import load_corpus
        from bwds.training.usage import measure_usage

        data = bwds.DataConfig(dataset="text", directory="texts", eval_batch_size=2, sequence_length=8)
        corpus = load_corpus(data)
        config = bwds.ModelConfig(vocab_size=len(corpus.vocabulary), hidden_size=32, block_size=8)
        params = bwds.language_model(config).init(jax.random.key(0))
        found = measure_usage(params, config, corpus.valid, data, corpus.vocabulary.eos_id)
        print(found.losses["own"], found.matrices.keys())
        ```

    Args:
        params: as ``LanguageModel.init`` makes them.
        config: of a dynamic model.
        ids: the text.
        data: gives ``eval_batch_size`` and ``sequence_length``.
        eos_id: the token before the first.
        counterfactuals: also measure the other choices, some five times the work.
        groups: for every token of the vocabulary the number of its group, from 0 to G - 1, or -1 for none.
        seed: of the random choice of other tokens.
        follow: takes the windows and a title, and yields the windows one by one: for a progress bar.

    Raises:
        ValueError: the model has no gates, or the text is empty.
    """
    lm = language_model(config)
    windows = list(
        eval_batches(ids, batch_size=data.eval_batch_size, sequence_length=data.sequence_length, eos_id=eos_id)
    )
    rows = len(windows[0].inputs)
    choices = IN_ONE_PASS if counterfactuals else IN_ONE_PASS[:1]
    carries = {choice: lm.init_carry(rows) for choice in choices}
    before = {name: jnp.zeros((rows, *grid), bool) for name, grid in gated_matrices(config).items()}
    number = 0 if groups is None else int(groups.max()) + 1
    numbers = jnp.asarray(np.full(config.vocab_size, -1) if groups is None else groups, jnp.int32)
    found: list[_Counts] = []
    for i, window in enumerate(follow(windows, "own choice" if len(choices) == 1 else "choices by input")):
        key = jax.random.fold_in(jax.random.key(seed), i)
        carries, before, counts = _read(params, carries, before, window, numbers, i > 0, key, config, number)
        found.append(jax.device_get(counts))
    total = jax.tree.map(lambda *parts: np.sum(np.asarray(parts, np.float64), 0), *found)
    n = len(ids)
    matrices = {}
    for name, grid in gated_matrices(config).items():
        with np.errstate(invalid="ignore"):
            by_group = total.by_group[name] / total.of_group[:, None, None]
        matrices[name] = MatrixUsage(
            used=total.used[name] / n,
            num_kept=kept_of_each(config, name, grid),
            overlap_before=float(total.overlap_before[name] / max(1, total.pairs)),
            overlap_other=float(total.overlap_other[name] / n),
            overlap_chance=chance_overlap(
                grid, int(kept_count(grid, matrix_sparsity(config, name), config.gate_scope)), config.gate_scope
            ),
            by_group=by_group,
        )
    losses = {choice: float(total.losses[choice] / n) for choice in choices}
    if counterfactuals:
        static = {name: most_used(usage.used, config, name) for name, usage in matrices.items()}
        carry, sums = lm.init_carry(rows), []
        for window in follow(windows, "most frequent choice"):
            carry, loss = _read_static(params, carry, static, window, config)
            sums.append(float(loss))
        losses["most frequent"] = float(np.sum(sums) / n)
    return TextUsage(n, {choice: losses[choice] for choice in CHOICES if choice in losses}, matrices)


class _Counts(NamedTuple):
    """Sums over the tokens of a window: losses by choice, others by matrix, the last two in all."""

    losses: dict[str, Any]
    used: dict[str, Any]
    overlap_before: dict[str, Any]
    overlap_other: dict[str, Any]
    by_group: dict[str, Any]
    of_group: Any
    pairs: Any


@partial(jax.jit, static_argnames=("config", "number"))
def _read(
    params: Params,
    carries: dict[str, Any],
    before: dict[str, Bool[Array, "B R C"]],
    window: EvalBatch,
    groups: Int32[Array, " V"],
    has_before: Bool[Any, ""],
    key: Array,
    config: ModelConfig,
    number: int,
) -> tuple[dict[str, Any], dict[str, Bool[Array, "B R C"]], _Counts]:
    """One window with all choices of ``carries``; ``before``: the blocks kept for the last token before the window."""
    inputs, targets, weights = map(jnp.asarray, window)
    rows, steps = inputs.shape
    logits, own_carry, kept = apply_choosing(params, inputs, carries["own"], config, "own")

    def shifted(marks, last):
        first = jnp.where(has_before, last, marks[:, 0])
        return jnp.concatenate([first[:, None], marks[:, :-1]], axis=1)

    # A cycle through all tokens of the window, in an order drawn at random.
    order = jax.random.permutation(key, rows * steps)
    partner = jnp.zeros_like(order).at[order].set(jnp.roll(order, 1))
    step_before = {name: shifted(marks, before[name]) for name, marks in kept.items()}
    other = {name: marks.reshape(-1, *marks.shape[2:])[partner].reshape(marks.shape) for name, marks in kept.items()}
    after, losses = {"own": own_carry}, {"own": (cross_entropy(logits, targets) * weights).sum()}
    for choice, blocks in (("other token", other), ("step before", step_before), ("hindsight", "hindsight")):
        if choice in carries:
            logits, after[choice], _ = apply_choosing(params, inputs, carries[choice], config, blocks)
            losses[choice] = (cross_entropy(logits, targets) * weights).sum()

    with_before = weights.at[:, 0].multiply(has_before)
    member = jax.nn.one_hot(groups[inputs], number) * weights[..., None]
    counts = _Counts(
        losses=losses,
        used={name: jnp.einsum("bt,btrc->rc", weights, marks) for name, marks in kept.items()},
        overlap_before={name: (overlap(kept[name], step_before[name]) * with_before).sum() for name in kept},
        overlap_other={name: (overlap(kept[name], other[name]) * weights).sum() for name in kept},
        by_group={name: jnp.einsum("btg,btrc->grc", member, marks) for name, marks in kept.items()},
        of_group=member.sum((0, 1)),
        pairs=with_before.sum(),
    )
    return after, {name: marks[:, -1] for name, marks in kept.items()}, counts


@partial(jax.jit, static_argnames="config")
def _read_static(
    params: Params, carry: Any, static: dict[str, Bool[Array, "R C"]], window: EvalBatch, config: ModelConfig
) -> tuple[Any, Float[Array, ""]]:
    """The carry after a window and the sum of its losses, with the same blocks for all of its tokens."""
    shape = window.inputs.shape
    marks = {name: jnp.broadcast_to(blocks[None, None], (*shape, *blocks.shape)) for name, blocks in static.items()}
    logits, carry, _ = apply_choosing(params, jnp.asarray(window.inputs), carry, config, marks)
    return carry, (cross_entropy(logits, jnp.asarray(window.targets)) * jnp.asarray(window.weights)).sum()
