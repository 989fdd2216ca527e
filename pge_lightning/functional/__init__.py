"""Formulas as pure functions."""

from pge_lightning.functional.gap import (
    gaps_by_unit,
    kernelwise_gap,
    layerwise_gap,
    principal_gradient_gap,
    published_gap,
    spread_weights,
    unit_gap,
)
from pge_lightning.functional.scores import (
    gaussian_bhattacharyya,
    h_score,
    log_me,
    parc,
    regularized_h_score,
    trans_rate,
)

__all__ = [
    "gaps_by_unit",
    "gaussian_bhattacharyya",
    "h_score",
    "kernelwise_gap",
    "layerwise_gap",
    "log_me",
    "parc",
    "principal_gradient_gap",
    "published_gap",
    "regularized_h_score",
    "spread_weights",
    "trans_rate",
    "unit_gap",
]
