"""Weights of a combination learned from records: how much each estimator's vote was worth on past targets."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

from pge_lightning.functional.standing import standardised, standings

__all__ = ["Learned", "learn_weights"]

_FOLDS = 10
_PRIOR = 3.0  # the plain weights count as much as this many targets

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Learned:
    """Weights, and what speaks for them.

    Args:
        weights: One per column; the plain ones where `used` is false.
        used: Whether they are learned ones.
        targets: Past targets that could be learned from.
        gain: Weighted tau of learned weights over that of the plain ones, in the mean over targets that were left out;
            nan where there were too few.
        standard_error: Of the gain, over targets.
    """

    weights: dict[str, float]
    used: bool
    targets: int
    gain: float = np.nan
    standard_error: float = np.nan


def learn_weights(
    scores: pd.DataFrame,
    estimates: Mapping[str, pd.DataFrame],
    plain: Mapping[str, float],
    standing: str | None = None,
    least: int = 5,
) -> Learned:
    r"""Learn how to weigh estimators, if that ranks past targets better than plain weights do.

    Least squares of what fine-tuning gave on the estimators' votes, both standardised within a target, shrunk to the
    plain weights :math:`w_0`: with :math:`X_t` and :math:`y_t` those of target t and :math:`n_t` its sources,

    .. math:: \min_w \sum_t \frac{1}{n_t} |X_t w - y_t|^2 + \lambda |w - c w_0|^2,

    c being the best common factor. A weight is at least 0 where the plain one is positive, and of any sign where that
    is 0. It is judged by leaving targets out, their part in the standings too, and used where it ranks them better in
    the mean.

    Args:
        scores: What fine-tuning gave, higher is better, ``[rows, sources]``, nan where a source was not tried; the
            first level of the index names the target, the second, if there is one, the metric.
        estimates: Column to what its estimator told before, higher is better, a table like `scores`.
        plain: Column to its plain weight.
        standing: Name of the column of standings, if there is one; computed here, without the target in question.
        least: Fewest targets to learn from.

    Returns:
        The weights.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> scores, noise = (pd.DataFrame(rng.normal(size=(20, 6))) for _ in range(2))
        >>> learned = learn_weights(scores, {"oracle": scores, "noise": noise}, {"oracle": 1.0, "noise": 1.0})
        >>> learned.used, round(learned.weights["oracle"], 1), round(learned.weights["noise"], 1)
        (True, 0.8, 0.1)
    """
    table = _Table(scores[_complete(scores, estimates)], estimates, list(plain), standing)
    targets = list(dict.fromkeys(table.targets))
    start = np.array(list(plain.values()), dtype=np.float64)
    if len(targets) < least:
        return Learned(dict(plain), False, len(targets))
    gains: list[float] = []
    for fold in range(min(_FOLDS, len(targets))):
        held = targets[fold::_FOLDS]
        weights = _fit(table.design(set(targets) - set(held), held), start)
        gains += [_tau(x @ weights, y) - _tau(x @ start, y) for x, y in table.design(held, held)]
    gain, error = float(np.mean(gains)), float(stats.sem(gains))
    used = gain > 0
    weights = _fit(table.design(targets, ()), start) if used else start
    return Learned(dict(zip(plain, weights.tolist(), strict=True)), used, len(targets), gain, error)


@dataclass(frozen=True)
class _Table:
    """Past pairs of target and source."""

    scores: pd.DataFrame
    estimates: Mapping[str, pd.DataFrame]
    columns: Sequence[str]
    standing: str | None

    @property
    def targets(self) -> list[str]:
        return list(self.scores.index.get_level_values(0))

    def design(self, chosen: Collection[str], held: Collection[str]) -> list[tuple[Floats, Floats]]:
        """Votes ``[sources, columns]`` and outcomes ``[sources]`` of each row of the chosen targets."""
        targets = pd.Index(self.targets)
        outcomes = standardised(self.scores[targets.isin(list(chosen))])
        parts = []
        for target, rows in outcomes.groupby(level=0):
            others = self.scores[~targets.isin([target, *held])]
            known = standings(standardised(others))["standing"] if self.standing else None
            parts += [self._row(row, outcome.dropna(), known) for row, outcome in rows.iterrows()]
        return parts

    def _row(self, row: Any, outcome: "pd.Series[float]", known: "pd.Series[float] | None") -> tuple[Floats, Floats]:
        votes = {name: each.loc[row] for name, each in self.estimates.items()}
        if self.standing and known is not None:
            votes[self.standing] = known
        frame = pd.DataFrame({name: votes[name].reindex(outcome.index) for name in self.columns})
        centred = frame - frame.mean()
        scaled = centred / frame.std(ddof=0).where(lambda spread: spread > 0, np.inf)
        return np.asarray(scaled.fillna(0.0), dtype=np.float64), np.asarray(outcome, dtype=np.float64)


def _complete(scores: pd.DataFrame, estimates: Mapping[str, pd.DataFrame]) -> "pd.Series[bool]":
    """Rows in which every estimator spoke of two sources or more that were tried."""
    tried = scores.notna()
    enough = [(each.reindex_like(scores).notna() & tried).sum(axis=1) > 1 for each in estimates.values()]
    return pd.concat([tried.sum(axis=1) > 1, *enough], axis=1).all(axis=1)


def _fit(parts: Sequence[tuple[Floats, Floats]], start: Floats) -> Floats:
    x = np.concatenate([votes / np.sqrt(len(votes)) for votes, _ in parts])
    y = np.concatenate([outcome / np.sqrt(len(outcome)) for _, outcome in parts])
    plain = x @ start
    factor = max(0.0, float(plain @ y) / max(float(plain @ plain), 1e-12))
    pull = np.sqrt(_PRIOR)
    system = np.concatenate([x, pull * np.eye(len(start))])
    least = np.where(start > 0, 0.0, -np.inf)
    found = optimize.lsq_linear(system, np.concatenate([y, pull * factor * start]), (least, np.inf), method="bvls")
    return np.asarray(found.x, dtype=np.float64)


def _tau(score: Floats, truth: Floats) -> float:
    if (score == score[0]).all() or (truth == truth[0]).all():
        return 0.0
    return float(stats.weightedtau(score, truth).statistic)
