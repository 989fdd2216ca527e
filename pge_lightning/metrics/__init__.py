"""Formulas as torchmetrics classes, which hold state and compute over all processes."""

from pge_lightning.metrics.gap import PrincipalGradientGap
from pge_lightning.metrics.gaussian_bhattacharyya import GaussianBhattacharyya
from pge_lightning.metrics.h_score import HScore, RegularizedHScore
from pge_lightning.metrics.knn import KNNAccuracy
from pge_lightning.metrics.leep import LEEP
from pge_lightning.metrics.linear_probe import LinearProbe
from pge_lightning.metrics.log_me import LogME
from pge_lightning.metrics.nce import NCE
from pge_lightning.metrics.nleep import NLEEP
from pge_lightning.metrics.otdd import OptimalTransportDatasetDistance
from pge_lightning.metrics.pactran import PACTran
from pge_lightning.metrics.parc import PARC
from pge_lightning.metrics.sfda import SFDA
from pge_lightning.metrics.task2vec import Task2VecDistance
from pge_lightning.metrics.trans_rate import TransRate

__all__ = [
    "LEEP",
    "NCE",
    "NLEEP",
    "PARC",
    "SFDA",
    "GaussianBhattacharyya",
    "HScore",
    "KNNAccuracy",
    "LinearProbe",
    "LogME",
    "OptimalTransportDatasetDistance",
    "PACTran",
    "PrincipalGradientGap",
    "RegularizedHScore",
    "Task2VecDistance",
    "TransRate",
]
