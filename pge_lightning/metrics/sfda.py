"""Self-challenging Fisher discriminant analysis as a metric."""

from torch import Tensor

from pge_lightning.functional.scores.sfda import sfda
from pge_lightning.metrics.sample_score import FeatureScore

__all__ = ["SFDA"]


class SFDA(FeatureScore):
    """Self-challenging Fisher score, higher is more transferable; see :func:`~pge_lightning.functional.scores.sfda`.

    As input to ``update`` and ``forward`` the metric takes `features`, ``[n, d]``, and `target` classes, ``[n]``. As
    output of ``compute`` it gives a float64 scalar, in (0, 1].

    Args:
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import SFDA
        >>> metric = SFDA()
        >>> metric.update(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 0, 1]))
        >>> metric.update(torch.tensor([[3.0], [4.0], [5.0]]), torch.tensor([0, 1, 1]))
        >>> metric.compute()
        tensor(0.5807, dtype=torch.float64)
    """

    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return sfda(inputs, target)
