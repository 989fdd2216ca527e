"""Log expected empirical prediction as a metric."""

from torch import Tensor

from pge_lightning.functional.scores.leep import leep
from pge_lightning.metrics.sample_score import SampleScore

__all__ = ["LEEP"]


class LEEP(SampleScore):
    """Log expected empirical prediction; see :func:`~pge_lightning.functional.scores.leep`.

    As input to ``update`` and ``forward`` the metric takes `probabilities` of the source's classes, ``[n, K]``, and
    `target` classes, ``[n]``. As output of ``compute`` it gives a float64 scalar, at most 0; higher is more
    transferable.

    Args:
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import LEEP
        >>> metric = LEEP()
        >>> metric.update(torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]), torch.tensor([7, 7, 3]))
        >>> metric.compute()
        tensor(-0.3743, dtype=torch.float64)
    """

    plot_upper_bound = 0.0

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Add samples.

        Args:
            probabilities: What the source's head predicts, ``[n, K]``.
            target: Class of each sample, ``[n]``.

        Raises:
            ValueError: If there is not one target per sample.
        """
        self._keep(probabilities, target)

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return leep(inputs, target)
