"""How well scores rank sources, measured against what fine-tuning from them really gave."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ["CONVENTION", "Quality", "agreement", "assess", "expected_at_random", "regret", "spearman", "weighted_tau"]

CONVENTION = (
    "Weighted tau is scipy.stats.weightedtau(score, truth) with its default ranks; score is higher for better (minus "
    "the gap), truth the mean accuracy after fine-tuning. Regret and gain are points of accuracy. The self pair is "
    "never counted."
)


@dataclass(frozen=True)
class Quality:
    """How well scores rank the sources of one target.

    Where several sources share the highest score, regret, top-1 and rank are means over these choices.

    Args:
        weighted_tau: Agreement of the orders, in [-1, 1], the top counting most; higher is better.
        spearman: Rank correlation, in [-1, 1]; higher is better.
        regret: Points that the chosen source loses to the best one, at least 0; lower is better.
        top_1: Whether the choice is the best source, 0 or 1; higher is better.
        rank: Rank of the choice by what fine-tuning gave, 1 for the best source; lower is better.
    """

    weighted_tau: float
    spearman: float
    regret: float
    top_1: float
    rank: float


def weighted_tau(score: ArrayLike, truth: ArrayLike) -> float:
    """Kendall's tau with hyperbolic weights, averaged over the ranks by score and by truth (Vigna 2015).

    The literature calls it both ways round; this is ``scipy.stats.weightedtau(score, truth)`` with default ranks.

    Args:
        score: One value per source, higher for better, ``[sources]``.
        truth: What fine-tuning gave, higher is better, ``[sources]``.

    Returns:
        In [-1, 1]; nan where one side is constant.

    Example:
        >>> weighted_tau([3, 2, 1], [0.9, 0.8, 0.7])
        1.0
    """
    return _correlation(stats.weightedtau, score, truth)


def spearman(score: ArrayLike, truth: ArrayLike) -> float:
    """Spearman's rank correlation.

    Args:
        score: One value per source, higher for better, ``[sources]``.
        truth: What fine-tuning gave, higher is better, ``[sources]``.

    Returns:
        In [-1, 1]; nan where one side is constant.

    Example:
        >>> round(spearman([3, 2, 1], [0.9, 0.7, 0.8]), 3)
        0.5
    """
    return _correlation(stats.spearmanr, score, truth)


def regret(score: ArrayLike, truth: ArrayLike) -> float:
    """What the choice loses to the best source.

    Args:
        score: One value per source, higher for better, ``[sources]``; where several share the highest, their mean
            counts.
        truth: What fine-tuning gave as a fraction, higher is better, ``[sources]``.

    Returns:
        Points, at least 0.

    Example:
        >>> round(regret([0.5, 0.9, 0.1], [0.80, 0.75, 0.60]), 6)
        5.0
    """
    scores, truths = _pair(score, truth)
    return 100 * float(truths.max() - truths[scores == scores.max()].mean())


def assess(score: ArrayLike, truth: ArrayLike) -> Quality:
    """All measures of one ranking.

    Args:
        score: One value per source, higher for better, ``[sources]``; at least two.
        truth: What fine-tuning gave as a fraction, higher is better, ``[sources]``.

    Returns:
        The measures; the correlations are nan where one side is constant.

    Raises:
        ValueError: If the lengths differ, there are fewer than two sources, or a value is not finite.

    Example:
        >>> quality = assess([0.5, 0.9, 0.1], [0.80, 0.75, 0.60])
        >>> round(quality.regret, 6), quality.top_1, quality.rank
        (5.0, 0.0, 2.0)
    """
    scores, truths = _pair(score, truth)
    choices = scores == scores.max()
    return Quality(
        weighted_tau=weighted_tau(scores, truths),
        spearman=spearman(scores, truths),
        regret=regret(scores, truths),
        top_1=float((truths[choices] == truths.max()).mean()),
        rank=float(_ranks(truths)[choices].mean()),
    )


def expected_at_random(truth: ArrayLike) -> Quality:
    """What a random order gives on average, exactly: both correlations are 0 by symmetry.

    Args:
        truth: What fine-tuning gave as a fraction, higher is better, ``[sources]``; at least two.

    Returns:
        The measures.

    Raises:
        ValueError: If there are fewer than two sources, or a value is not finite.

    Example:
        >>> quality = expected_at_random([0.80, 0.75, 0.70, 0.75])
        >>> round(quality.regret, 6), quality.top_1, quality.rank
        (5.0, 0.25, 2.25)
    """
    _, truths = _pair(truth, truth)
    best = truths.max()
    return Quality(
        0.0, 0.0, 100 * float(best - truths.mean()), float((truths == best).mean()), float(_ranks(truths).mean())
    )


def agreement(values: ArrayLike) -> float:
    """How well one half of the fine-tuning seeds ranks the other: what no estimator can be expected to beat.

    Args:
        values: What fine-tuning gave, ``[sources, seeds]``.

    Returns:
        Spearman's correlation between the means over even and over odd seeds; nan for a single seed.

    Example:
        >>> agreement([[0.9, 0.8], [0.7, 0.75], [0.5, 0.6]])
        1.0
    """
    table = np.asarray(values, dtype=np.float64)
    if table.shape[1] < 2:
        return math.nan
    return spearman(table[:, ::2].mean(axis=1), table[:, 1::2].mean(axis=1))


def _pair(score: ArrayLike, truth: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    scores, truths = np.asarray(score, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if scores.shape != truths.shape or scores.ndim != 1 or len(scores) < 2:
        raise ValueError(
            f"Expected one score and one truth for at least two sources, but got shapes {scores.shape} and "
            f"{truths.shape}. Leave out sources that have only one of them."
        )
    if not (np.isfinite(scores).all() and np.isfinite(truths).all()):
        raise ValueError("Expected finite scores and truths, but got nan or inf. Leave these sources out.")
    return scores, truths


def _correlation(test: Callable[..., Any], score: ArrayLike, truth: ArrayLike) -> float:
    """The statistic of one of SciPy's tests; nan where one side is constant, which has no order."""
    pair = _pair(score, truth)
    return math.nan if any(map(_constant, pair)) else float(test(*pair).statistic)


def _constant(values: NDArray[np.float64]) -> bool:
    return bool((values == values[0]).all())


def _ranks(truths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank of each source by what fine-tuning gave; equal ones share the best rank of theirs."""
    return np.asarray(stats.rankdata(-truths, method="min"), dtype=np.float64)
