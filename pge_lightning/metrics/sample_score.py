"""What the metrics of one score share: they keep all samples and score them at the end."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

__all__ = ["FeatureScore", "SampleScore"]


class SampleScore(Metric, ABC):
    """A score of all samples together, over all updates and processes.

    A subclass gives `update` with its own names of the inputs, which calls `_keep`, and `_score`, which calls the
    function.

    Args:
        **kwargs: Arguments of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    inputs: list[Tensor]
    target: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("inputs", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def compute(self) -> Tensor:
        """Score of all samples seen.

        Returns:
            Scalar in float64.

        Raises:
            ValueError: If there was no sample, or the score has no meaning for these.
        """
        if not len(self.target):
            raise ValueError(
                f"Expected samples before `compute` of {type(self).__name__}, but got none. Call `update`."
            )
        return self._score(dim_zero_cat(self.inputs), dim_zero_cat(self.target))

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot one or several values; needs Matplotlib.

        Args:
            val: Result of ``forward`` or ``compute``, or several of them; ``None`` computes the value.
            ax: Axes to draw on; ``None`` makes a figure.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)

    @abstractmethod
    def _score(self, inputs: Tensor, target: Tensor) -> Tensor: ...

    def _keep(self, inputs: Tensor, target: Tensor) -> None:
        if len(inputs) != len(target):
            raise ValueError(
                f"Expected one target per sample, but got {len(inputs)} samples and {len(target)} targets."
            )
        self.inputs.append(inputs.detach())
        self.target.append(target.detach())


class FeatureScore(SampleScore, ABC):
    """A score of features ``[n, d]`` and targets ``[n]``; a subclass gives `_score`.

    Args:
        **kwargs: Arguments of :class:`torchmetrics.Metric`.
    """

    def update(self, features: Tensor, target: Tensor) -> None:
        """Add samples.

        Args:
            features: Features, ``[n, d]``, of any floating dtype.
            target: One target per sample, ``[n]``.

        Raises:
            ValueError: If there is not one target per sample.
        """
        self._keep(features, target)
