"""Scores of how well a source's features or predictions suit a target's labels, as pure functions."""

from pge_lightning.functional.scores.gaussian_bhattacharyya import gaussian_bhattacharyya
from pge_lightning.functional.scores.h_score import h_score, regularized_h_score
from pge_lightning.functional.scores.knn import knn_accuracy
from pge_lightning.functional.scores.leep import leep
from pge_lightning.functional.scores.linear_probe import linear_probe, linear_probe_folds
from pge_lightning.functional.scores.log_me import log_me
from pge_lightning.functional.scores.nce import nce
from pge_lightning.functional.scores.nleep import nleep
from pge_lightning.functional.scores.pactran import pactran
from pge_lightning.functional.scores.parc import parc
from pge_lightning.functional.scores.sfda import sfda
from pge_lightning.functional.scores.trans_rate import trans_rate

__all__ = [
    "gaussian_bhattacharyya",
    "h_score",
    "knn_accuracy",
    "leep",
    "linear_probe",
    "linear_probe_folds",
    "log_me",
    "nce",
    "nleep",
    "pactran",
    "parc",
    "regularized_h_score",
    "sfda",
    "trans_rate",
]
