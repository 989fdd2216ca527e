"""H-score, plain and regularised, as metrics."""

from torch import Tensor

from pge_lightning.functional.scores import h_score, regularized_h_score
from pge_lightning.metrics.sample_score import FeatureScore

__all__ = ["HScore", "RegularizedHScore"]


class HScore(FeatureScore):
    """H-score of features for classes, higher is more transferable.

    Updates keep features ``[n, d]`` and targets ``[n]``, processes put theirs together, and ``compute`` gives
    :func:`~pge_lightning.functional.scores.h_score` of them all, in [0, C - 1] for C classes.

    Note:
        ``forward`` also scores its batch alone, which raises where the batch is too small; call ``update``.

    Args:
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import HScore
        >>> metric = HScore()
        >>> metric.update(torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 6.0]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[3.0, 1.0, 2.0], [4.0, 2.0, 3.0], [4.0, 0.0, 2.0]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.9534, dtype=torch.float64)
    """

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return h_score(inputs, target)


class RegularizedHScore(FeatureScore):
    """H-score with a shrunk covariance, higher is more transferable.

    Updates keep features ``[n, d]`` and targets ``[n]``, processes put theirs together, and ``compute`` gives
    :func:`~pge_lightning.functional.scores.regularized_h_score` of them all, in [0, (C - 1) n / (n - 1)] for C classes.

    Note:
        ``forward`` also scores its batch alone, which raises where the batch is too small; call ``update``.

    Args:
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import RegularizedHScore
        >>> metric = RegularizedHScore()
        >>> metric.update(torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 6.0]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[3.0, 1.0, 2.0], [4.0, 2.0, 3.0], [4.0, 0.0, 2.0]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.5574, dtype=torch.float64)
    """

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return regularized_h_score(inputs, target)
