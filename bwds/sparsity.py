"""Arithmetic of the baselines: the cubic schedule of the sparsity, and block-diagonal masks."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from bwds.array_types import Array, Bool, Float


def schedule_steps(steps: int, *, begin: float, end: float, every: int) -> range:
    """Steps at which the cubic schedule changes the sparsity: at least two, evenly spaced.

    Never before step 1: what training starts from is not pruned.

    Args:
        steps: all steps of the training run.
        begin: where the schedule begins, as a fraction of them.
        end: where it has reached the final sparsity; moved to an earlier step, to a whole number of intervals.
        every: steps between two changes; with more than there are, the sparsity changes at the first and last step.

    Raises:
        ValueError: ``begin`` is not before ``end``, one is outside [0, 1], or there are too few steps.
    """
    if not 0.0 <= begin < end <= 1.0:
        raise ValueError(
            f"sparsity_begin is {begin} and sparsity_end {end}; both are fractions of all steps, at least 0 and at "
            "most 1, the first less than the second."
        )
    first, last = max(1, round(begin * steps)), round(end * steps)
    if first >= last:
        raise ValueError(
            f"steps is {steps}; the sparsity would have to rise between step {first} and step {last}: take more steps "
            "or a larger sparsity_end."
        )
    return range(first, last + 1, min(every, last - first))


def cubic_sparsity(step: int, steps: range, *, initial: float, final: float) -> float:
    """Sparsity after ``step`` steps by the schedule of Zhu and Gupta (arXiv 1710.01878, equation 1).

        s_t = s_f + (s_i - s_f) * (1 - (t - t_0) / (n dt))^3    for t in {t_0, t_0 + dt, ..., t_0 + n dt}

    0 before t_0; constant between two of these steps and after the last.

    Args:
        step: steps done.
        steps: the steps t, as ``schedule_steps`` gives them.
        initial: s_i.
        final: s_f.
    """
    if step < steps.start:
        return 0.0
    n = len(steps) - 1
    passed = min((step - steps.start) // steps.step, n)
    return final + (initial - final) * (1.0 - passed / n) ** 3


def diagonal_groups(num_blocks: int, sparsity: float) -> int:
    """Groups G of equal size on the diagonal of a matrix of ``num_blocks`` blocks a side: sparsity = 1 - 1/G.

    Four decimals of the sparsity are enough: 0.6667 is three groups.

    Raises:
        ValueError: no G that divides ``num_blocks`` gives this sparsity; the possible ones are named.
    """
    possible = {g: 1.0 - 1.0 / g for g in range(1, num_blocks + 1) if num_blocks % g == 0}
    groups = min(possible, key=lambda g: abs(possible[g] - sparsity))
    if abs(possible[groups] - sparsity) > 5e-5:
        raise ValueError(
            f"sparsity is {sparsity}; block-diagonal matrices of {num_blocks} blocks a side can have "
            f"{', '.join(f'{s:.4g}' for s in possible.values())}: choose one of these, or another block size."
        )
    return groups


def block_diagonal_mask(grid: tuple[int, int], num_blocks: int, groups: int) -> Bool[np.ndarray, "R C"]:
    """Which blocks of a recurrent layer's matrix a static-block model keeps.

    The matrix is made of square tiles of ``num_blocks`` blocks a side, one from every H inputs (x_{t-1} and x_t of a
    QRNN) to every H outputs (the four or three parts of the cell). Each tile is block-diagonal: block (r, c) of it is
    kept where floor(r G / n) = floor(c G / n). So a model falls into G models of width H / G, side by side from the
    embedding to the softmax.

    Args:
        grid: (R, C), multiples of ``num_blocks``.
        num_blocks: n = H / block size.
        groups: G, a divisor of n.
    """
    size = num_blocks // groups
    group_of_row, group_of_column = (np.arange(length) % num_blocks // size for length in grid)
    return group_of_row[:, None] == group_of_column[None, :]


def where_kept(mask: Bool[Any, "R C"], kernel: Float[Array, "K N"], other: Any = 0.0) -> Float[Array, "K N"]:
    """The kernel in the blocks that a mask keeps, ``other`` elsewhere. R divides K and C divides N."""
    for axis in (0, 1):
        if mask.shape[axis] < kernel.shape[axis]:
            mask = jnp.repeat(mask, kernel.shape[axis] // mask.shape[axis], axis)
    return jnp.where(mask, kernel, other)
