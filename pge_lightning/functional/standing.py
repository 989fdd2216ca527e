"""Standing: how well a source did on the targets it was tried on, from tables with holes."""

import numpy as np
import pandas as pd

__all__ = ["standardised", "standings"]

_SHRINKAGE = 1.0  # a source's own share of the variance on one target is taken to be as large as all the rest
_POOLED = 1.0  # what other targets say of a target's spread counts as one more source tried on it


def standardised(values: pd.DataFrame) -> pd.DataFrame:
    """Values in units of their target's spread over sources, centred on the target's mean.

    A spread over few sources is a guess, so it is mixed with that of other targets in the same metric.

    Args:
        values: What fine-tuning gave, higher is better, ``[rows, sources]``; nan where a source was not tried. The
            first level of the index names the target, the second, if there is one, the metric.

    Returns:
        The table without rows in which fewer than two sources were tried.

    Example:
        >>> standardised(pd.DataFrame({"a": [0.9, 0.5], "b": [0.7, 0.3]})).round(2).to_numpy().tolist()
        [[0.71, -0.71], [0.71, -0.71]]
    """
    compared = values[values.notna().sum(axis=1) > 1]
    deviations = compared.sub(compared.mean(axis=1), axis="index")
    squares, freedom = (deviations**2).sum(axis=1), deviations.notna().sum(axis=1) - 1
    alike = compared.index.get_level_values(1) if compared.index.nlevels > 1 else [0] * len(compared)
    pooled = squares.groupby(alike).transform("sum") / freedom.groupby(alike).transform("sum")
    spread = ((squares + _POOLED * pooled) / (freedom + _POOLED)) ** 0.5
    return deviations.div(spread.where(spread > 0, 1.0), axis="index")


def standings(scaled: pd.DataFrame) -> pd.DataFrame:
    r"""Mean standing of each source over targets, corrected for the company in which it was tried.

    A source that was only tried beside the best ones is not the worse for it: with :math:`y_{ts}` the standardised
    value of source s on target t, the model is :math:`y_{ts} = a_t + b_s + e_{ts}`, with :math:`b_s` drawn around 0.
    Its best linear unbiased prediction (Henderson 1975; Robinson 1991, "That BLUP is a good thing") shrinks sources
    that were tried on few targets to the mean, 0, and gives a source that nobody tried the largest error.

    Args:
        scaled: From :func:`standardised`, ``[rows, sources]``. The first level of its index names the target; several
            rows of one target share its weight.

    Returns:
        One row per source, columns standing (higher is better, in units of the spread over sources on one target, mean
        about 0), standard_error and targets (how many of them say something of the source).

    Example:
        >>> table = pd.DataFrame({"good": [0.9, 0.6], "poor": [0.7, 0.5], "new": [np.nan, np.nan]})
        >>> standings(standardised(table)).round(2)
              standing  standard_error  targets
        good      0.44            0.46        2
        poor     -0.44            0.46        2
        new       0.00            0.57        0
    """
    targets = scaled.index.get_level_values(0)
    share = 1 / targets.value_counts()[targets].to_numpy(dtype=np.float64)
    tried, y = scaled.notna().to_numpy(dtype=np.float64), scaled.fillna(0.0).to_numpy(dtype=np.float64)
    # Henderson's equations for the sources, the targets' own effects eliminated: rows are centred already.
    among = tried * (share / tried.sum(axis=1))[:, None]
    precision = np.diag(share @ tried) - tried.T @ among + _SHRINKAGE * np.eye(tried.shape[1])
    covariance = np.linalg.inv(precision)
    standing = covariance @ (share @ y)
    # Residual squares and penalty together, the likelihood's estimate of the variance: it is never 0 by overfitting.
    freedom = float(share @ (tried.sum(axis=1) - 1))
    squares = float(share @ (y**2).sum(axis=1)) - float(share @ y @ standing)
    error = np.sqrt((squares / freedom if freedom else 1.0) * np.diag(covariance))
    known = scaled.notna().groupby(targets).any().sum()
    return pd.DataFrame({"standing": standing, "standard_error": error, "targets": known}, index=scaled.columns)
