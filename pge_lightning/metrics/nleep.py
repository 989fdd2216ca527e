"""LEEP of clusters of the features as a metric."""

from typing import Any

from torch import Tensor

from pge_lightning.functional.scores.nleep import nleep
from pge_lightning.metrics.sample_score import FeatureScore

__all__ = ["NLEEP"]


class NLEEP(FeatureScore):
    """LEEP of clusters of the features; see :func:`~pge_lightning.functional.scores.nleep`.

    As input to ``update`` and ``forward`` the metric takes `features`, ``[n, d]``, and `target` classes, ``[n]``. As
    output of ``compute`` it gives a float64 scalar, at most 0; higher is more transferable.

    Args:
        components: Number of clusters; ``None`` takes 5 per class, but no more than one for each 8 samples.
        energy: Share of the variance that is kept, in (0, 1).
        seed: Of the mixture's start.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import NLEEP
        >>> metric = NLEEP(components=2)
        >>> metric.update(torch.tensor([[0.0], [0.1], [0.2], [0.3]]), torch.tensor([0, 0, 0, 1]))
        >>> metric.update(torch.tensor([[5.0], [5.1], [5.2], [5.3]]), torch.tensor([1, 1, 1, 1]))
        >>> metric.compute()
        tensor(-0.2812, dtype=torch.float64)
    """

    plot_upper_bound = 0.0

    def __init__(self, components: int | None = None, energy: float = 0.8, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.components, self.energy, self.seed = components, energy, seed

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return nleep(inputs, target, self.components, self.energy, self.seed)
