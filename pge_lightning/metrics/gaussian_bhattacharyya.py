"""Gaussian Bhattacharyya coefficient as a metric."""

from typing import Any

from torch import Tensor

from pge_lightning.functional.scores import gaussian_bhattacharyya
from pge_lightning.functional.scores.gaussian_bhattacharyya import Covariance
from pge_lightning.metrics.sample_score import FeatureScore

__all__ = ["GaussianBhattacharyya"]


class GaussianBhattacharyya(FeatureScore):
    """Overlap of the classes as Gaussians, below 0, higher is more transferable.

    Updates keep features ``[n, d]`` and targets ``[n]``, processes put theirs together, and ``compute`` gives
    :func:`~pge_lightning.functional.scores.gaussian_bhattacharyya` of them all, in [-C (C - 1), 0] for C classes.

    Note:
        ``forward`` also scores its batch alone, which raises where the batch is too small; call ``update``.

    Args:
        covariance: ``"spherical"`` or ``"diagonal"``.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import GaussianBhattacharyya
        >>> metric = GaussianBhattacharyya()
        >>> metric.update(torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 6.0]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[3.0, 1.0, 2.0], [4.0, 2.0, 3.0], [4.0, 0.0, 2.0]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(-1.6887, dtype=torch.float64)
    """

    def __init__(self, covariance: Covariance = "spherical", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.covariance: Covariance = covariance

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return gaussian_bhattacharyya(inputs, target, self.covariance)
