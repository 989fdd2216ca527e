"""Task2Vec as a metric that sums squared gradients over batches and processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from pge_lightning.functional.distances import task2vec_distance

__all__ = ["Task2VecDistance"]


class Task2VecDistance(Metric):
    """Task2Vec distance from a source to a target, lower is more transferable; see :func:`task2vec_distance`.

    As input to ``update`` the metric takes `gradients` of a fixed network at samples or small batches of one data set,
    each weight unit ``[*shape]``, and `source`, which says of which. The mean of their squares is the diagonal of the
    empirical Fisher information. As output of ``compute`` it gives a float64 scalar.

    Args:
        units: Weight unit to its shape.
        asymmetric: Whether the source's distance from a trivial task is taken off.
        alpha: How much of it.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If there is no unit.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics.task2vec import Task2VecDistance
        >>> metric = Task2VecDistance({"weight": (2, 1)}, asymmetric=False)
        >>> metric.update({"weight": torch.tensor([[1.0], [0.0]])}, source=True)
        >>> metric.update({"weight": torch.tensor([[1.0], [2.0]])}, source=False)
        >>> metric.compute()
        tensor(0.5528, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    source_count: Tensor
    target_count: Tensor

    def __init__(
        self, units: Mapping[str, Sequence[int]], asymmetric: bool = True, alpha: float = 0.15, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not units:
            raise ValueError("Expected at least one weight unit in `units`, but got none.")
        self.units, self.asymmetric, self.alpha = list(units), asymmetric, alpha
        for side in ("source", "target"):
            for number, shape in enumerate(units.values()):
                zeros = torch.zeros(tuple(shape), dtype=torch.float64)
                self.add_state(f"{side}_{number}", zeros, dist_reduce_fx="sum")
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, gradients: Mapping[str, Tensor], source: bool) -> None:
        """Add one observation of the gradients of one data set.

        Args:
            gradients: Weight unit to its gradient, ``[*shape]``.
            source: Whether it belongs to the source, not to the target.

        Raises:
            ValueError: If units or shapes are not those of the constructor.
        """
        side = "source" if source else "target"
        shapes = {name: getattr(self, f"{side}_{number}").shape for number, name in enumerate(self.units)}
        if (found := {name: gradient.shape for name, gradient in gradients.items()}) != shapes:
            raise ValueError(f"Expected gradients of shapes {shapes}, but got {found}.")
        for number, name in enumerate(self.units):
            getattr(self, f"{side}_{number}").add_(gradients[name].detach().double().square())
        getattr(self, f"{side}_count").add_(1)

    def compute(self) -> Tensor:
        """Distance of the mean squares over all updates and processes.

        Returns:
            Scalar in float64.

        Raises:
            ValueError: If one side was never observed, or as :func:`task2vec_distance`.
        """
        if not self.source_count * self.target_count:
            raise ValueError("Expected gradients of both data sets before `compute`, but one has none. Call `update`.")
        return task2vec_distance(
            self._mean("source", self.source_count),
            self._mean("target", self.target_count),
            self.asymmetric,
            self.alpha,
        )

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot one or several values; needs Matplotlib.

        Args:
            val: Result of ``compute``, or several of them; ``None`` computes the value.
            ax: Axes to draw on; ``None`` makes a figure.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)

    def _mean(self, side: str, count: Tensor) -> dict[str, Tensor]:
        return {name: getattr(self, f"{side}_{number}")[None] / count for number, name in enumerate(self.units)}
