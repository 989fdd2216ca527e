"""PACTran-Gaussian as a metric."""

from typing import Any

from torch import Tensor

from pge_lightning.functional.scores.pactran import pactran
from pge_lightning.metrics.sample_score import FeatureScore

__all__ = ["PACTran"]


class PACTran(FeatureScore):
    """Negative PACTran-Gaussian, higher is more transferable; see :func:`~pge_lightning.functional.scores.pactran`.

    As input to ``update`` and ``forward`` the metric takes `features`, ``[n, d]``, and `target` classes, ``[n]``. As
    output of ``compute`` it gives a float64 scalar, below 0.

    Args:
        strength: How closely the samples are fitted, above 0.
        variance: Variance of the prior, times ``d``, above 0.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import PACTran
        >>> metric = PACTran(variance=1.0)
        >>> metric.update(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1]))
        >>> metric.compute()
        tensor(-0.4943, dtype=torch.float64)
    """

    plot_upper_bound = 0.0

    def __init__(self, strength: float = 1.0, variance: float = 10.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strength, self.variance = strength, variance

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return pactran(inputs, target, self.strength, self.variance)
