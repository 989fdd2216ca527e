"""Cross-validated accuracy of a linear classifier as a metric."""

from typing import Any

from torch import Tensor

from pge_lightning.functional.scores.linear_probe import Classifier, Measure, linear_probe
from pge_lightning.metrics.sample_score import FeatureScore

__all__ = ["LinearProbe"]


class LinearProbe(FeatureScore):
    """Cross-validated accuracy of a linear classifier; see :func:`~pge_lightning.functional.scores.linear_probe`.

    As input to ``update`` and ``forward`` the metric takes `features`, ``[n, d]``, and `target` classes, ``[n]``. As
    output of ``compute`` it gives a float64 scalar, in [0, 1]; higher is more transferable. The splits go by the order
    of the samples, which is that of the updates, process by process.

    Args:
        folds: Parts of which each is left out in turn.
        repeats: How often the samples are split anew.
        classifier: ``"ridge"`` or ``"logistic"``.
        strength: Penalty; ``None`` takes that of the classifier.
        measure: ``"accuracy"`` or ``"confidence"``.
        seed: Of the splits.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import LinearProbe
        >>> metric = LinearProbe()
        >>> metric.update(torch.tensor([[0.0], [0.1], [0.2]]), torch.tensor([7, 7, 7]))
        >>> metric.update(torch.tensor([[0.9], [1.0], [1.1]]), torch.tensor([3, 3, 3]))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    plot_lower_bound, plot_upper_bound = 0.0, 1.0

    def __init__(
        self,
        folds: int = 3,
        repeats: int = 5,
        classifier: Classifier = "ridge",
        strength: float | None = None,
        measure: Measure = "accuracy",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folds, self.repeats, self.seed = folds, repeats, seed
        self.classifier: Classifier = classifier
        self.strength = strength
        self.measure: Measure = measure

    def _score(self, inputs: Tensor, target: Tensor) -> Tensor:
        return linear_probe(
            inputs, target, self.folds, self.repeats, self.classifier, self.strength, self.measure, self.seed
        )
