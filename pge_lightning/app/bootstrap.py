"""How sure a comparison of estimators is: targets and seeds drawn again, and paired tests over targets."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from pge_lightning.app.quality import regret, weighted_tau

__all__ = ["DRAWS", "bootstrap", "compare_pairwise"]

DRAWS = 200
MEASURED = ("weighted_tau", "regret")

Floats = NDArray[np.float64]


def bootstrap(
    values: Mapping[str, pd.DataFrame],
    scores: Mapping[str, pd.DataFrame],
    draws: int = DRAWS,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Draw targets with replacement, and in each of them the seeds of fine-tuning (Efron and Tibshirani 1993).

    Args:
        values: Target to what fine-tuning gave, higher is better, ``[sources, seeds]``.
        scores: Target to what estimators said, higher for better, ``[sources, estimators]``; nan where a source has
            none, which then stands last.
        draws: How often.
        confidence: Probability that an interval is to cover, in (0, 1).
        seed: Stands for the draws, which are the same for all estimators.

    Returns:
        One row per estimator, in the order of the columns: ends of the intervals of its means over targets, columns
        weighted_tau_low, weighted_tau_high, regret_low and regret_high (points); nan where a measure is not defined.
    """
    random = np.random.default_rng(seed)
    targets = [name for name in values if name in scores and len(values[name]) > 1]
    names = list(dict.fromkeys(name for target in targets for name in scores[target].columns))
    columns = [f"{measure}_{end}" for measure in MEASURED for end in ("low", "high")]
    if not names:  # no target has two sources that every seed succeeded with
        return pd.DataFrame(columns=["estimator", *columns])
    # Measures of every draw of seeds, [draws, targets, estimators, measures].
    table = np.stack([_redrawn(values[name], scores[name], names, draws, random) for name in targets], axis=1)
    chosen = random.integers(len(targets), size=(draws, len(targets)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of means over nothing, which are nan
        means = np.nanmean(np.take_along_axis(table, chosen[:, :, None, None], axis=1), axis=1)
        low, high = np.nanquantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    ends = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    return pd.DataFrame(ends, columns=columns).assign(estimator=names)


def _redrawn(
    values: pd.DataFrame, scores: pd.DataFrame, names: Sequence[str], draws: int, random: np.random.Generator
) -> Floats:
    """The measures of every estimator on one target, ``[draws, estimators, measures]``, under other draws of seeds."""
    truths, filled = values.to_numpy(dtype=np.float64), _filled(scores.reindex(values.index), names)
    picked = random.integers(truths.shape[1], size=(draws, truths.shape[1]))
    found = np.full((draws, len(names), len(MEASURED)), np.nan)
    for draw, seeds in enumerate(picked):
        truth = truths[:, seeds].mean(axis=1)
        for place, column in enumerate(filled.T):
            if np.isfinite(column).all():
                found[draw, place] = weighted_tau(column, truth), regret(column, truth)
    return found


def _filled(scores: pd.DataFrame, names: Sequence[str]) -> Floats:
    """Scores as a table; sources without one stand last, and an estimator without two of them is nan."""
    table = scores.reindex(columns=list(names)).astype(float)
    enough = (table.notna().sum() > 1).to_numpy()
    return np.where(enough, table.fillna(table.min() - 1).to_numpy(dtype=np.float64), np.nan)


def compare_pairwise(results: pd.DataFrame) -> pd.DataFrame:
    """Differences of estimators, target by target, with paired permutation tests.

    Under the null hypothesis the sign of each target's difference is a coin toss (`scipy.stats.permutation_test`, exact
    for few targets). With so many pairs, one in twenty looks different by chance: the p-values are not corrected.

    Args:
        results: One row per target and estimator, with the measures.

    Returns:
        One row per pair: columns estimator, other, targets, and for weighted tau and regret the mean of the estimator's
        value less the other's, and the two-sided p-value; nan where fewer than two targets are ranked by both.
    """
    tables = {name: results.pivot(index="target", columns="estimator", values=name) for name in MEASURED}
    order = list(dict.fromkeys(results["estimator"]))
    rows = []
    for one, other in combinations(order, 2):
        row: dict[str, object] = {"estimator": one, "other": other}
        for name, table in tables.items():
            differences = (table[one] - table[other]).dropna().to_numpy(dtype=np.float64)
            row |= {"targets": len(differences), name: _mean(differences), f"{name}_p": _p_value(differences)}
        rows.append(row)
    return pd.DataFrame(rows)


def _mean(differences: Floats) -> float:
    return float(differences.mean()) if len(differences) else float("nan")


def _p_value(differences: Floats) -> float:
    if len(differences) < 2:
        return float("nan")
    if not differences.any():
        return 1.0
    test = stats.permutation_test(
        (differences,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=4999,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)
