"""The gap as a metric that sums gradient observations over batches and processes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from pge_lightning.functional.gap import KINDS, Kind, principal_gradient_gap

__all__ = ["PrincipalGradientGap"]


class PrincipalGradientGap(Metric):
    """Gap between the mean gradients of two data sets, lower is more transferable.

    Each update adds gradient observations of both data sets to running sums per restart, in float64; the gap is that
    of the means, by :func:`~pge_lightning.functional.principal_gradient_gap`. Processes may see other batches, other
    restarts, or both: together they give what one process gives that saw all.

    As input to ``update`` and ``forward`` the metric takes `source` and `target`, each a mapping of every weight unit
    to gradients ``[observed restarts, *shape]``, and optionally `restarts`, the numbers of the observed restarts in
    that order. As output of ``compute`` it gives a float64 scalar.

    Note:
        ``forward`` also computes the gap of its batch alone, and so needs a batch that holds every restart.

    Args:
        units: Weight unit to its shape.
        restarts: Number of restarts.
        kind: ``"kernelwise"``, ``"layerwise"``, ``"unit"`` or ``"published"``.
        **kwargs: Arguments of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: If there is no unit, `restarts` is less than 1, or `kind` is unknown.

    Example:
        >>> import torch
        >>> from pge_lightning.metrics import PrincipalGradientGap
        >>> metric = PrincipalGradientGap({"weight": (2,)}, restarts=2)
        >>> metric.update({"weight": torch.tensor([[1.0, 0.0]])}, {"weight": torch.tensor([[0.0, 2.0]])}, restarts=[0])
        >>> metric.update({"weight": torch.tensor([[1.0, 0.0]])}, {"weight": torch.tensor([[3.0, 0.0]])}, restarts=[1])
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    source_sum: Tensor
    target_sum: Tensor
    count: Tensor

    def __init__(
        self, units: Mapping[str, Sequence[int]], restarts: int, kind: Kind = "kernelwise", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not units:
            raise ValueError("Expected at least one weight unit in `units`, but got none.")
        if restarts < 1:
            raise ValueError(f"Expected `restarts` to be at least 1, but got {restarts}.")
        if kind not in KINDS:
            raise ValueError(f"Expected `kind` to be one of {KINDS}, but got {kind!r}.")
        self.units = {name: tuple(shape) for name, shape in units.items()}
        self.restarts = restarts
        self.kind: Kind = kind
        zeros = torch.zeros(restarts, sum(self._sizes), dtype=torch.float64)
        self.add_state("source_sum", zeros, dist_reduce_fx="sum")
        self.add_state("target_sum", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(restarts, dtype=torch.long), dist_reduce_fx="sum")

    def update(
        self, source: Mapping[str, Tensor], target: Mapping[str, Tensor], restarts: Sequence[int] | None = None
    ) -> None:
        """Add one observation of both data sets for each of the given restarts.

        Args:
            source: Weight unit to gradients, ``[len(restarts), *shape]``.
            target: The same for the other data set.
            restarts: Numbers of the observed restarts, from 0; ``None`` takes all, in order.

        Raises:
            ValueError: If a number is out of range, or units or shapes are not those of the constructor.
        """
        numbers = list(range(self.restarts) if restarts is None else restarts)
        if not all(0 <= number < self.restarts for number in numbers):
            raise ValueError(f"Expected `restarts` to be numbers from 0 to {self.restarts - 1}, but got {numbers}.")
        rows = [self._flatten(side, len(numbers)) for side in (source, target)]
        index = torch.tensor(numbers, dtype=torch.long, device=self.count.device)
        self.source_sum.index_add_(0, index, rows[0])
        self.target_sum.index_add_(0, index, rows[1])
        self.count.index_add_(0, index, torch.ones_like(index))

    def compute(self) -> Tensor:
        """Gap of the mean gradients over all updates and processes.

        Returns:
            Scalar in float64.

        Raises:
            ValueError: If a restart was never observed, or the means cannot be compared.
        """
        if missing := (self.count == 0).nonzero().flatten().tolist():
            raise ValueError(
                f"Expected observations of all {self.restarts} restarts, but got none of {missing}. Call `update` with "
                "them first; where a batch holds only some restarts, call `update` and not `forward`."
            )
        source, target = (self._split(total / self.count[:, None]) for total in (self.source_sum, self.target_sum))
        return principal_gradient_gap(source, target, self.kind)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot one or several values; needs Matplotlib.

        Args:
            val: Result of ``forward`` or ``compute``, or several of them; ``None`` computes the value.
            ax: Axes to draw on; ``None`` makes a figure.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)

    @property
    def _sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.units.values()]

    def _flatten(self, stack: Mapping[str, Tensor], count: int) -> Tensor:
        if unknown := sorted(stack.keys() ^ self.units.keys()):
            raise ValueError(f"Expected the units {list(self.units)}, but {unknown[:3]} are on one side only.")
        for name, shape in self.units.items():
            if stack[name].shape != (count, *shape):
                raise ValueError(
                    f"Expected unit '{name}' of shape {[count, *shape]}, but got {list(stack[name].shape)}. "
                    "Give one gradient for each of `restarts`."
                )
        return torch.cat([stack[name].detach().unsqueeze(-1).flatten(1).double() for name in self.units], dim=1)

    def _split(self, rows: Tensor) -> dict[str, Tensor]:
        parts = zip(self.units.items(), rows.split_with_sizes(self._sizes, dim=1), strict=True)
        return {name: part.reshape(len(part), *shape) for (name, shape), part in parts}
