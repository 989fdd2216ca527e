"""Estimators: everything that ranks the sources of a library for a target."""

from pge_lightning.estimators.baselines import FactEstimator, RandomOrder
from pge_lightning.estimators.combination import Combination
from pge_lightning.estimators.default import both_gaps, combined, default_estimator, frozen_estimator, gap_and_history
from pge_lightning.estimators.distances import InputStatistics, OTDDEstimator, Task2VecEstimator
from pge_lightning.estimators.estimator import Estimate, Estimator
from pge_lightning.estimators.feature_score import FeatureScore
from pge_lightning.estimators.gap import GapEstimator
from pge_lightning.estimators.learned import LearnedCombination
from pge_lightning.estimators.pipeline import Pipeline
from pge_lightning.estimators.standing import StandingEstimator
from pge_lightning.estimators.target import Target

__all__ = [
    "Combination",
    "Estimate",
    "Estimator",
    "FactEstimator",
    "FeatureScore",
    "GapEstimator",
    "InputStatistics",
    "LearnedCombination",
    "OTDDEstimator",
    "Pipeline",
    "RandomOrder",
    "StandingEstimator",
    "Target",
    "Task2VecEstimator",
    "both_gaps",
    "combined",
    "default_estimator",
    "frozen_estimator",
    "gap_and_history",
]
