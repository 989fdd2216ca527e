"""Formulas as pure functions."""

from pge_lightning.functional.distances import (
    gaussian_wasserstein,
    otdd,
    task2vec_distance,
)
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
    knn_accuracy,
    leep,
    linear_probe,
    linear_probe_folds,
    log_me,
    nce,
    nleep,
    pactran,
    parc,
    regularized_h_score,
    sfda,
    trans_rate,
)

__all__ = [
    "gaps_by_unit",
    "gaussian_bhattacharyya",
    "gaussian_wasserstein",
    "h_score",
    "kernelwise_gap",
    "knn_accuracy",
    "layerwise_gap",
    "leep",
    "linear_probe",
    "linear_probe_folds",
    "log_me",
    "nce",
    "nleep",
    "otdd",
    "pactran",
    "parc",
    "principal_gradient_gap",
    "published_gap",
    "regularized_h_score",
    "sfda",
    "spread_weights",
    "task2vec_distance",
    "trans_rate",
    "unit_gap",
]
