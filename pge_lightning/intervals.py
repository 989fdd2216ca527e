"""Intervals: how far a mean of a few independent draws may be off."""

import math
from collections.abc import Sequence

from scipy import stats

__all__ = ["error_and_margin"]


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
    error = float(stats.sem(values))
    return error, error * float(stats.t.ppf((1 + confidence) / 2, len(values) - 1))
