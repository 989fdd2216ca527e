"""Leave-one-out accuracy of nearest neighbours as a metric."""

from typing import Any

from torch import Tensor

from pge_lightning.functional.scores.knn import knn_accuracy
from pge_lightning.metrics.sample_score import FeatureScore

__all__ = ["KNNAccuracy"]


class KNNAccuracy(FeatureScore):
    """Leave-one-out accuracy of nearest neighbours; see :func:`~pge_lightning.functional.scores.knn_accuracy`.

    As input to ``update`` and ``forward`` the metric takes `features`, ``[n, d]``, and `target` classes, ``[n]``. As
    output of ``compute`` it gives a float64 scalar, in [0, 1]; higher is more transferable.

    Args:
        k: Number of neighbours.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import KNNAccuracy
        >>> metric = KNNAccuracy(k=1)
        >>> metric.update(torch.tensor([[0.0], [0.1], [0.2]]), torch.tensor([0, 0, 0]))
        >>> metric.update(torch.tensor([[5.0], [5.1], [0.3]]), torch.tensor([1, 1, 1]))
        >>> metric.compute()
        tensor(0.8333, dtype=torch.float64)
    """

    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def __init__(self, k: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.k = k

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return knn_accuracy(inputs, target, self.k)
