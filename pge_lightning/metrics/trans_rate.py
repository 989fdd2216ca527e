"""TransRate as a metric."""

from typing import Any

from torch import Tensor

from pge_lightning.functional.scores import trans_rate
from pge_lightning.metrics.sample_score import FeatureScore

__all__ = ["TransRate"]


class TransRate(FeatureScore):
    """Coding rate that knowing the classes saves, higher is more transferable.

    Updates keep features ``[n, d]`` and targets ``[n]``, processes put theirs together, and ``compute`` gives
    :func:`~pge_lightning.functional.scores.trans_rate` of them all, in nats.

    Note:
        ``forward`` also scores its batch alone, which raises where the batch is too small; call ``update``.

    Args:
        distortion: The distortion that the code allows, in squared units of the features.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import TransRate
        >>> metric = TransRate()
        >>> metric.update(torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 6.0]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[3.0, 1.0, 2.0], [4.0, 2.0, 3.0], [4.0, 0.0, 2.0]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(2.3746, dtype=torch.float64)
    """

    def __init__(self, distortion: float = 1e-4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distortion = distortion

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return trans_rate(inputs, target, self.distortion)
