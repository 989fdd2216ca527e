"""LogME as a metric."""

from typing import Any

from torch import Tensor

from pge_lightning.functional.scores import log_me
from pge_lightning.metrics.sample_score import FeatureScore

__all__ = ["LogME"]


class LogME(FeatureScore):
    """Logarithm of maximum evidence of features for classes or real targets, higher is more transferable.

    Updates keep features ``[n, d]`` and targets ``[n]``, processes put theirs together, and ``compute`` gives
    :func:`~pge_lightning.functional.scores.log_me` of them all, in nats per sample.
    Integer targets are classes; those of a floating dtype, ``[n]`` or ``[n, k]``, are real targets.

    Note:
        ``forward`` also scores its batch alone, which raises where the batch is too small; call ``update``.

    Args:
        iterations: Greatest number of iterations.
        tolerance: Relative change at which the iteration stops.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import LogME
        >>> metric = LogME()
        >>> metric.update(torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 6.0]]), torch.tensor([0, 1]))
        >>> metric.update(torch.tensor([[3.0, 1.0, 2.0], [4.0, 2.0, 3.0], [4.0, 0.0, 2.0]]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(-1.0066, dtype=torch.float64)
    """

    def __init__(self, iterations: int = 1000, tolerance: float = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.iterations = iterations
        self.tolerance = tolerance

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return log_me(inputs, target, self.iterations, self.tolerance)
