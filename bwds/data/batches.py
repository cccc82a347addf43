"""Windows of token ids for training and evaluation, from a split of a corpus. NumPy only."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bwds.array_types import Float32, Int32


class Batch(NamedTuple):
    """One training step's tokens."""

    inputs: Int32[np.ndarray, "B T"]
    targets: Int32[np.ndarray, "B T"]
    """For each input, the token after it."""
    new_epoch: bool
    """First window of an epoch: the carried state must be zeros."""


def steps_per_epoch(ids: Int32[np.ndarray, " n"], *, batch_size: int, sequence_length: int) -> int:
    """Whole windows in one pass over the corpus.

    Raises:
        ValueError: the corpus is shorter than one batch.
    """
    steps = (len(ids) - 1) // batch_size // sequence_length
    if steps < 1:
        raise ValueError(
            f"The training split has {len(ids)} tokens, fewer than one batch of {batch_size} x {sequence_length} and "
            "one more; choose a smaller data.batch_size or data.sequence_length, or more text."
        )
    return steps


def train_batch(
    ids: Int32[np.ndarray, " n"], step: int, *, batch_size: int, sequence_length: int, rows: slice = slice(None)
) -> Batch:
    """The batch of a step. It depends on the number of the step alone, so that runs can resume.

    The text is cut into ``batch_size`` contiguous columns of equal length; a step reads the next
    ``sequence_length`` tokens of each. Tokens at the end of a column that fill no whole window are left out.

    Args:
        ids: the corpus.
        step: number of the step, counted from 0 over all epochs.
        batch_size: columns, B.
        sequence_length: tokens of each, T.
        rows: which of the B rows to return.

    Raises:
        ValueError: the corpus is shorter than one batch.
    """
    epoch_steps = steps_per_epoch(ids, batch_size=batch_size, sequence_length=sequence_length)
    step %= epoch_steps
    column_length = (len(ids) - 1) // batch_size
    starts = np.arange(batch_size)[rows] * column_length + step * sequence_length
    window = ids[starts[:, None] + np.arange(sequence_length + 1)[None, :]]
    return Batch(window[:, :-1], window[:, 1:], step == 0)


class EvalBatch(NamedTuple):
    """One evaluation step's tokens."""

    inputs: Int32[np.ndarray, "B T"]
    targets: Int32[np.ndarray, "B T"]
    weights: Float32[np.ndarray, "B T"]
    """1 where the target counts, else 0."""


def eval_batches(
    ids: Int32[np.ndarray, " n"], *, batch_size: int, sequence_length: int, eos_id: int
) -> Iterator[EvalBatch]:
    """Windows in which each of the n tokens is a target of weight 1 exactly once, for any batch size.

    The input of the first token is ``<eos>``; the input of every other token is the token before it. The text is cut
    into at most ``batch_size`` contiguous columns, read side by side. The first column starts at the first token, from
    a state of zeros, and is one window longer than the others. Every other column starts one window early, with weight
    0 there, so that its state is warm when its own tokens come. All windows have the same shape, [B, T]; B is less than
    ``batch_size`` if columns would otherwise be empty. Padding, at the end of the last column, has weight 0.

    Raises:
        ValueError: there are no tokens.
    """
    n, window = len(ids), sequence_length
    if n == 0:
        raise ValueError("There are no tokens to evaluate on.")
    # The fewest windows w of the other columns with (w + 1) T + (B - 1) w T >= n; then the fewest columns.
    column_windows = max(0, -(-(n - window) // (batch_size * window)))
    columns = -(-(n - window) // (column_windows * window)) if column_windows else 1
    starts = np.arange(columns) * column_windows * window
    ends = np.minimum(starts + (column_windows + 1) * window, n)
    text = np.concatenate([[eos_id], ids]).astype(np.int32)  # text[i] is the input of target text[i + 1]
    for step in range(column_windows + 1):
        places = (starts + step * window)[:, None] + np.arange(window)[None, :]
        inside = places < ends[:, None]
        warm_up = (step == 0) & (np.arange(columns) > 0)
        weights = inside & ~warm_up[:, None]
        inputs = np.where(inside, text[np.minimum(places, n)], eos_id)
        targets = np.where(inside, text[np.minimum(places + 1, n)], eos_id)
        yield EvalBatch(inputs.astype(np.int32), targets.astype(np.int32), weights.astype(np.float32))
