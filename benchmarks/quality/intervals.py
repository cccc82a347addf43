"""Means over seeds with 95% confidence intervals (Student's t), and the difference of two means (Welch)."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

# Two-sided 95% quantiles of Student's t for 1, 2, ... degrees of freedom.
QUANTILES = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


class Estimate(NamedTuple):
    """A value and half the width of its 95% interval, or None if a side has fewer than two values."""

    value: float
    half_width: float | None


def quantile(freedom: float) -> float:
    """Quantile of Student's t. Degrees of freedom are rounded down, and cut at 30, so no interval is too narrow."""
    return QUANTILES[min(max(math.floor(freedom), 1), len(QUANTILES)) - 1]


def mean(values: Sequence[float]) -> Estimate:
    """Mean of at least one value."""
    if len(values) < 2:
        return Estimate(values[0], None)
    half_width = quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), half_width)


def difference(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """Mean of ``one`` minus mean of ``other``, each of at least one value; variances may differ."""
    value = statistics.fmean(one) - statistics.fmean(other)
    if min(len(one), len(other)) < 2:
        return Estimate(value, None)
    parts = [(statistics.variance(values) / len(values), len(values) - 1) for values in (one, other)]
    variance = sum(part for part, _ in parts)
    if variance == 0.0:
        return Estimate(value, 0.0)
    freedom = variance**2 / sum(part**2 / n for part, n in parts)
    return Estimate(value, quantile(freedom) * math.sqrt(variance))
