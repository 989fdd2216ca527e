"""Accuracy: how often a module's own step is right, seen at the cross entropy that it computes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["CountedHits"]


class CountedHits(TorchFunctionMode):
    """While it is entered, counts the predictions that go into cross entropies of class numbers, and the right ones.

    It sees ``torch.nn.functional.cross_entropy`` and ``nll_loss``, and so the modules made of them, with classes in
    dimension 1 as these ask for; what they are told to ignore does not count. Other losses, probabilities for targets
    and compiled code go unseen.

    Attributes:
        right: Right predictions.
        total: All predictions.

    Example:
        >>> with CountedHits() as hits:
        ...     _ = F.cross_entropy(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        >>> hits.right, hits.total, hits.accuracy
        (1, 2, 0.5)
    """

    def __init__(self) -> None:
        super().__init__()
        self.right = self.total = 0

    @property
    def accuracy(self) -> float | None:
        """The share of right predictions, in [0, 1]; ``None`` where none was seen."""
        return self.right / self.total if self.total else None

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Look at the arguments of a function on its way."""
        kwargs = kwargs or {}
        if func in (F.cross_entropy, F.nll_loss):
            self._count(*args, **kwargs)
        return func(*args, **kwargs)

    def _count(self, input: Tensor, target: Tensor, *args: Any, ignore_index: int = -100, **_: Any) -> None:
        # In both functions: weight, size_average, ignore_index.
        ignored = args[2] if len(args) > 2 else ignore_index
        if target.is_floating_point():
            return
        guesses = input.detach().argmax(dim=min(1, input.ndim - 1))
        counted = target != ignored
        self.right += int((guesses.eq(target) & counted).sum())
        self.total += int(torch.count_nonzero(counted))
