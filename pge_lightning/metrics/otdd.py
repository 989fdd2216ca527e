"""The optimal-transport data-set distance as a metric that keeps samples of both sides."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from pge_lightning.functional.distances import otdd

__all__ = ["OptimalTransportDatasetDistance"]


class OptimalTransportDatasetDistance(Metric):
    """Optimal-transport distance between two labelled data sets, lower is nearer; see :func:`otdd` for the formula.

    As input to ``update`` the metric takes vectors `inputs` ``[n, d]``, their class numbers `labels` ``[n]``, and
    `source`, which says to which of the two data sets they belong. As output of ``compute`` it gives a float64 scalar,
    at least 0. It keeps all samples; some hundred of each side are enough, and its time grows with their square.

    Args:
        regularisation: Weight of the plan's entropy, as a share of the largest cost; 0 solves the problem exactly.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics.otdd import OptimalTransportDatasetDistance
        >>> metric = OptimalTransportDatasetDistance()
        >>> metric.update(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 1]), source=True)
        >>> metric.update(torch.tensor([[3.0], [5.0]]), torch.tensor([1, 0]), source=False)
        >>> metric.compute()
        tensor(4.2426, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    source_x: list[Tensor]
    source_y: list[Tensor]
    target_x: list[Tensor]
    target_y: list[Tensor]

    def __init__(self, regularisation: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.regularisation = regularisation
        for side in ("source", "target"):
            self.add_state(f"{side}_x", [], dist_reduce_fx="cat")
            self.add_state(f"{side}_y", [], dist_reduce_fx="cat")

    def update(self, inputs: Tensor, labels: Tensor, source: bool) -> None:
        """Add samples of one data set.

        Args:
            inputs: Vectors, ``[n, d]``.
            labels: Class numbers, ``[n]``.
            source: Whether they belong to the source, not to the target.
        """
        (self.source_x if source else self.target_x).append(inputs.detach())
        (self.source_y if source else self.target_y).append(labels.detach())

    def compute(self) -> Tensor:
        """Distance of all samples seen.

        Returns:
            Scalar in float64.

        Raises:
            ValueError: If one side has no samples, or as :func:`otdd`.
        """
        if not len(self.source_x) or not len(self.target_x):
            raise ValueError("Expected samples of both data sets before `compute`, but one has none. Call `update`.")
        source_x, source_y = dim_zero_cat(self.source_x), dim_zero_cat(self.source_y)
        target_x, target_y = dim_zero_cat(self.target_x), dim_zero_cat(self.target_y)
        return otdd(source_x, source_y, target_x, target_y, self.regularisation)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot one or several values; needs Matplotlib.

        Args:
            val: Result of ``compute``, or several of them; ``None`` computes the value.
            ax: Axes to draw on; ``None`` makes a figure.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)
