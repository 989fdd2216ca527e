"""Formulas as torchmetrics classes, which hold state and compute over all processes."""

from pge_lightning.metrics.gap import PrincipalGradientGap
from pge_lightning.metrics.knn import KNNAccuracy
from pge_lightning.metrics.leep import LEEP
from pge_lightning.metrics.linear_probe import LinearProbe
from pge_lightning.metrics.nce import NCE
from pge_lightning.metrics.nleep import NLEEP
from pge_lightning.metrics.pactran import PACTran
from pge_lightning.metrics.sfda import SFDA

__all__ = [
    "LEEP",
    "NCE",
    "NLEEP",
    "SFDA",
    "KNNAccuracy",
    "LinearProbe",
    "PACTran",
    "PrincipalGradientGap",
]
