"""The default: gap and history say which sources are worth opening, features of these are looked at beside them."""

from pge_lightning.estimators.combination import Combination
from pge_lightning.estimators.estimator import Estimator
from pge_lightning.estimators.feature_score import FeatureScore
from pge_lightning.estimators.gap import GapEstimator
from pge_lightning.estimators.pipeline import Pipeline
from pge_lightning.estimators.standing import StandingEstimator
from pge_lightning.probe import Probe

__all__ = ["combined", "default_estimator", "gap_and_history"]


def gap_and_history(probe: Probe | str = "default", label_free: Probe | str = "label_free") -> Combination:
    """History and gap, a vote each, and a quarter of one for the label-free gap; opens no source.

    Args:
        probe: Of the gap.
        label_free: Of the label-free gap; left out where sources hold no signatures of it.

    Returns:
        The estimator.
    """
    members: dict[str, Estimator] = {
        "standing": StandingEstimator(),
        "gap": GapEstimator(probe),
        "label_free": GapEstimator(label_free, name="label_free"),
    }
    return Combination(members, {"label_free": 0.25}, name="gap_and_history")


def combined(probe: Probe | str = "default", label_free: Probe | str = "label_free") -> Combination:
    """The same, a vote of the linear probe and half a vote of LogME; opens all sources that it is asked about.

    Args:
        probe: Of the gap.
        label_free: Of the label-free gap.

    Returns:
        The estimator.
    """
    cheap = gap_and_history(probe, label_free)
    features = {name: FeatureScore(name) for name in ("linear_probe", "log_me")}
    weights = {**cheap.weights, "log_me": 0.5}
    return Combination({**cheap.estimators, **features}, weights, name="combined")


def default_estimator(probe: Probe | str = "default", label_free: Probe | str = "label_free") -> Pipeline:
    """Rank all sources by :func:`gap_and_history`, and the best 30 % of them by :func:`combined`.

    Args:
        probe: Of the gap.
        label_free: Of the label-free gap.

    Returns:
        The estimator.
    """
    first, then = gap_and_history(probe, label_free), combined(probe, label_free)
    return Pipeline(first, then, shortlist=0.3, name="shortlisted")
