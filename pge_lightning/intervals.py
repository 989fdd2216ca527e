"""Intervals: how far a mean of a few independent draws may be off."""

import math
from collections.abc import Sequence
from functools import lru_cache

from scipy import stats

__all__ = ["error_and_margin", "quantile"]


def error_and_margin(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Standard error of a mean, and half the width of its Student-t interval.

    Args:
        values: Independent draws of one quantity.
        confidence: Probability that the interval covers the quantity's expectation, in (0, 1).

    Returns:
        Both; nan where there are fewer than two draws.

    Raises:
        ValueError: If `confidence` is out of range.

    Example:
        >>> [round(number, 4) for number in error_and_margin([1.0, 2.0, 3.0])]
        [0.5774, 2.4841]
    """
    if not 0 < confidence < 1:
        raise ValueError(f"Expected `confidence` between 0 and 1, but got {confidence}.")
    if len(values) < 2:
        return math.nan, math.nan
    count = len(values)
    error = math.dist(values, [sum(values) / count] * count) / math.sqrt(count * (count - 1))
    return error, error * quantile(confidence, count - 1)


@lru_cache(maxsize=256)
def quantile(confidence: float, freedom: float = math.inf) -> float:
    """How many standard errors an interval reaches to either side.

    Kept, because it takes longer than all the rest of a comparison, and is the same for every source of a library.

    Args:
        confidence: Probability that the interval covers the quantity's expectation, in (0, 1).
        freedom: Degrees of freedom of Student's t; infinitely many give the normal distribution.

    Returns:
        The quantile, above 0.

    Example:
        >>> round(quantile(0.95), 4), round(quantile(0.95, 15), 4)
        (1.96, 2.1314)
    """
    return float(stats.t.ppf((1 + confidence) / 2, freedom))
