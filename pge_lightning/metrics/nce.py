"""Negative conditional entropy as a metric."""

from torch import Tensor

from pge_lightning.functional.scores.nce import nce
from pge_lightning.metrics.sample_score import SampleScore

__all__ = ["NCE"]


class NCE(SampleScore):
    """Negative conditional entropy, higher is more transferable; see :func:`~pge_lightning.functional.scores.nce`.

    As input to ``update`` and ``forward`` the metric takes `source_labels`, ``[n]``, and `target` classes, ``[n]``. As
    output of ``compute`` it gives a float64 scalar, at most 0.

    Args:
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import NCE
        >>> metric = NCE()
        >>> metric.update(torch.tensor([0, 0, 1, 1]), torch.tensor([7, 7, 7, 3]))
        >>> metric.compute()
        tensor(-0.3466, dtype=torch.float64)
    """

    plot_upper_bound = 0.0

    def update(self, source_labels: Tensor, target: Tensor) -> None:
        """Add samples.

        Args:
            source_labels: Class of each sample by the source's own head, ``[n]``.
            target: Class of each sample, ``[n]``.

        Raises:
            ValueError: If there is not one target per sample.
        """
        self._keep(source_labels, target)

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return nce(inputs, target)
