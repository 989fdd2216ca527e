"""PARC as a metric."""

from typing import Any

from torch import Tensor

from pge_lightning.functional.scores import parc
from pge_lightning.functional.scores.parc import Ties
from pge_lightning.metrics.sample_score import FeatureScore

__all__ = ["PARC"]


class PARC(FeatureScore):
    """Correlation of distances between features and between labels, higher is more transferable.

    Updates keep features ``[n, d]`` and targets ``[n]``, processes put theirs together, and ``compute`` gives
    :func:`~pge_lightning.functional.scores.parc` of them all, in [-100, 100].

    Note:
        ``forward`` also scores its batch alone, which raises where the batch is too small; call ``update``.

    Args:
        ties: ``"published"`` or ``"exact"``.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import PARC
        >>> metric = PARC()
        >>> metric.update(torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 6.0]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[3.0, 1.0, 2.0], [4.0, 2.0, 3.0], [4.0, 0.0, 2.0]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(-35.5335, dtype=torch.float64)
    """

    def __init__(self, ties: Ties = "published", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ties: Ties = ties

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return parc(inputs, target, self.ties)
