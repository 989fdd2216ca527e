"""The default: gap and history say which sources are worth opening, features of these are looked at beside them."""

from dataclasses import replace

from pge_lightning.estimators.combination import Combination
from pge_lightning.estimators.distances import Task2VecEstimator
from pge_lightning.estimators.estimator import Estimator
from pge_lightning.estimators.feature_score import FeatureScore
from pge_lightning.estimators.gap import GapEstimator
from pge_lightning.estimators.pipeline import Pipeline
from pge_lightning.estimators.standing import StandingEstimator
from pge_lightning.probe import Probe

__all__ = ["both_gaps", "combined", "default_estimator", "frozen_estimator", "gap_and_history"]


def both_gaps(probe: Probe | str = "default", label_free: Probe | str = "label_free", restarts: int = 8) -> Combination:
    """The gap and the label-free gap, a vote each, from no more restarts than a ranking needs; opens no source.

    One asks what the labels say, the other what the inputs are like: where one of them is weak, the other need not be.

    Args:
        probe: Of the gap.
        label_free: Of the label-free gap.
        restarts: How many of the probe's restarts the target takes, where it is walked as the probe says for targets.

    Returns:
        The estimator.
    """
    probe = Probe.of(probe)
    if probe.target is not None and restarts < (probe.restarts or 0):
        probe = replace(probe, target=replace(probe.target, restarts=restarts))
    return Combination(
        {"gap": GapEstimator(probe), "label_free": GapEstimator(label_free, name="label_free")}, name="both_gaps"
    )


def gap_and_history(
    probe: Probe | str = "default", label_free: Probe | str = "label_free", fisher: Probe | str = "task2vec"
) -> Combination:
    """History, gap and Task2Vec, a vote each, and half a vote of the label-free gap; opens no source.

    What past targets say counts as far as it is not noise: one of them says nothing, and two little.

    Args:
        probe: Of the gap.
        label_free: Of the label-free gap; left out where sources hold no signatures of it.
        fisher: Of Task2Vec; left out likewise.

    Returns:
        The estimator.
    """
    members: dict[str, Estimator] = {
        "standing": StandingEstimator(),
        "gap": GapEstimator(probe),
        "label_free": GapEstimator(label_free, name="label_free"),
        "task2vec": Task2VecEstimator(fisher),
    }
    return Combination(members, {"label_free": 0.5}, name="gap_and_history", hedge=["standing"])


def combined(
    probe: Probe | str = "default", label_free: Probe | str = "label_free", fisher: Probe | str = "task2vec"
) -> Combination:
    """The same, and half a vote each of linear probe and LogME; opens all sources that it is asked about.

    Args:
        probe: Of the gap.
        label_free: Of the label-free gap.
        fisher: Of Task2Vec.

    Returns:
        The estimator.
    """
    cheap = gap_and_history(probe, label_free, fisher)
    features = {name: FeatureScore(name) for name in ("linear_probe", "log_me")}
    weights = {**cheap.weights, **dict.fromkeys(features, 0.5)}
    return Combination({**cheap.estimators, **features}, weights, name="combined", hedge=cheap.hedge)


def default_estimator(
    probe: Probe | str = "default", label_free: Probe | str = "label_free", fisher: Probe | str = "task2vec"
) -> Pipeline:
    """Rank all sources by :func:`gap_and_history`, and the best 30 % of them, but thirty at least, by :func:`combined`.

    Opening so few costs less than collecting the target's signature.

    Args:
        probe: Of the gap.
        label_free: Of the label-free gap.
        fisher: Of Task2Vec.

    Returns:
        The estimator.
    """
    first, then = gap_and_history(probe, label_free, fisher), combined(probe, label_free, fisher)
    return Pipeline(first, then, shortlist=0.3, least=30, name="shortlisted")


def frozen_estimator() -> Combination:
    """PACTran and the Bhattacharyya overlap of classes (GBC), a vote each: for an encoder that stays frozen.

    What gaps, history and Task2Vec tell is where training of the whole model ends; a head on features that stay ends
    where the features let it. Opens all sources that it is asked about.

    Returns:
        The estimator.
    """
    return Combination({name: FeatureScore(name) for name in ("pactran", "gaussian_bhattacharyya")}, name="frozen")
