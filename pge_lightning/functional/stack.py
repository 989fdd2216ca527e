"""Stacks of principal gradients: what the gaps ask of two of them."""

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "Stack",
    "UnitKind",
    "check_finite",
    "common_units",
    "cosines",
    "mean_gradients",
    "norms",
    "total",
    "units_of",
]

Stack: TypeAlias = Mapping[str, Tensor]
UnitKind: TypeAlias = Literal["kernelwise", "layerwise"]

# Rows are widened to float64 in pieces of about this many elements, which stay in the processor's cache.
_PIECE = 2**16


def common_units(source: Stack, target: Stack) -> list[str]:
    """Check that two stacks can be compared.

    Returns:
        The names of their units, sorted.

    Raises:
        ValueError: If units, shapes or numbers of restarts differ, or there are none.
    """
    if missing := sorted(source.keys() ^ target.keys()):
        raise ValueError(f"Expected the same units on both sides, but {missing[:3]} are on one side only.")
    if not source:
        raise ValueError("Expected at least one weight unit, but got none.")
    restarts = {name: stack.shape[:1] for name, stack in source.items()}
    if len(set(restarts.values())) > 1 or min(restarts.values()) < (1,):
        found = {name: tuple(shape) for name, shape in restarts.items()}
        raise ValueError(f"Expected units `[restarts, *shape]` with one number of restarts, but got {found}.")
    for name, stack in source.items():
        if stack.shape != target[name].shape:
            raise ValueError(
                f"Expected unit '{name}' to have one shape `[restarts, *shape]`, but got {list(stack.shape)} and "
                f"{list(target[name].shape)}. Compare stacks of one architecture and number of restarts."
            )
    # In one order whichever side comes first: that makes the gap symmetric to the last bit.
    return sorted(source)


def units_of(kind: UnitKind, *stacks: Stack) -> list[str]:
    """The units that a formula looks at, of stacks with the same ones.

    Returns:
        Their names, sorted: kernelwise those of two dimensions and more, without the last where all stacks agree which
        one it is; where there are none, and layerwise, all.
    """
    orders = [[name for name, unit in stack.items() if unit.ndim > 2] for stack in stacks]
    if kind == "layerwise" or not orders[0]:
        return sorted(stacks[0])
    last = {order[-1] for order in orders if len(order) > 1}
    return sorted(set(orders[0]) - last if len(last) == 1 else orders[0])


def mean_gradients(source: Stack, target: Stack) -> list[tuple[Tensor, Tensor]]:
    """Mean over restarts of both sides, ``[*shape]`` in float64, unit by unit."""
    pairs = []
    for name in common_units(source, target):
        pair = tuple(side[name].detach().mean(dim=0, dtype=torch.float64) for side in (source, target))
        check_finite(name, source=pair[0].sum(), target=pair[1].sum())
        pairs.append((pair[0], pair[1]))
    return pairs


def norms(means: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Lengths of the two mean gradients over all units.

    Returns:
        The source's and the target's, scalars above zero.

    Raises:
        ValueError: If one of them is zero.
    """
    found = [total(pair[side].square().sum() for pair in means).sqrt() for side in (0, 1)]
    for side, norm in zip(("source", "target"), found, strict=True):
        if norm == 0:
            raise ValueError(
                f"Expected a gradient with a direction, but the mean over restarts of the {side} is zero in every "
                "unit. Use the 'kernelwise' gap, or collect the signature with a loss that reaches the encoder."
            )
    return found[0], found[1]


def cosines(name: str, source: Tensor, target: Tensor) -> Tensor:
    """Cosines of one unit per restart, ``[restarts]``, in [-1, 1]: 1 where both sides are zero, 0 where one is."""
    rows = [side.detach().unsqueeze(-1).flatten(1) for side in (source, target)]
    count = max(1, _PIECE // max(1, rows[0].shape[1]))
    pieces = [slice(start, start + count) for start in range(0, len(source), count)]
    sums = [_products(rows[0][piece].double(), rows[1][piece].double()) for piece in pieces]
    dot, source_square, target_square = torch.cat(sums, dim=1)
    check_finite(name, source=source_square, target=target_square)
    # One root of the product, not a product of roots: for equal rows it is exact, and so is their cosine of 1.
    squares = source_square * target_square
    both_zero = (source_square == target_square).double()
    return torch.where(squares > 0, dot / squares.sqrt(), both_zero).clamp(-1.0, 1.0)


def _products(source: Tensor, target: Tensor) -> Tensor:
    return torch.stack([(a * b).sum(dim=1) for a, b in ((source, target), (source, source), (target, target))])


def check_finite(name: str, **sides: Tensor) -> None:
    """Refuse values that are not finite.

    Raises:
        ValueError: If there is one; the message names side and unit.
    """
    for side, value in sides.items():
        if not value.isfinite().all():
            raise ValueError(
                f"Expected finite principal gradients, but the {side} holds nan or inf in unit '{name}'. "
                "Collect it again with a lower learning rate or a loss that stays finite."
            )


def total(values: Iterable[Tensor]) -> Tensor:
    """The sum of scalars."""
    return torch.stack(list(values)).sum()
