"""Directions: principal gradients brought to length one, whose products are the cosines that gaps are made of.

For rankings, which compare each side many times. In NumPy: PyTorch would share out every product among threads, which
on a busy machine wait for each other longer than the product takes.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pge_lightning.functional.stack import Stack, UnitKind, check_finite, common_units, units_of

__all__ = ["directions", "gaps_of_directions"]

# Rows are worked on in pieces of about this many elements, however large the unit.
_PIECE = 2**18


def directions(stack: Stack, kind: UnitKind) -> dict[str, Tensor]:
    """Principal gradients without their lengths, of the units that a formula looks at.

    Args:
        stack: Weight unit to its principal gradients, ``[restarts, *shape]``, float32.
        kind: The formula, which chooses units as in :func:`~pge_lightning.functional.gaps_by_unit`.

    Returns:
        Unit to ``[restarts, entries]``, float32, in the order of their names; each row has length one, or is zero where
        the gradient is.

    Raises:
        ValueError: If a value of any unit is not finite, or units differ in their number of restarts.

    Example:
        >>> import torch
        >>> directions({"weight": torch.tensor([[[3.0, 4.0]], [[0.0, 0.0]]])}, "kernelwise")
        {'weight': tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])}
    """
    chosen = units_of(kind, stack)
    for name in set(common_units(stack, stack)) - set(chosen):
        check_finite(name, source=stack[name].sum())
    return {name: _without_length(name, stack[name]) for name in chosen}


def _without_length(name: str, stack: Tensor) -> Tensor:
    rows = stack.detach().unsqueeze(-1).flatten(1).numpy()
    found = np.empty(rows.shape, np.float32)
    for piece in _pieces(rows):
        wide = rows[piece].astype(np.float64)
        lengths = np.sqrt(np.einsum("re,re->r", wide, wide))
        check_finite(name, source=torch.as_tensor(lengths))
        found[piece] = wide / np.where(lengths > 0, lengths, 1.0)[:, None]
    return torch.as_tensor(found)


def gaps_of_directions(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
    """What :func:`~pge_lightning.functional.gaps_by_unit` says of the stacks they come from, to within 1e-6.

    Args:
        source: :func:`directions` of one side.
        target: Those of the other: the same units and shapes.

    Returns:
        ``[restarts, units]`` in float64, units in the order of their names, in [0, 2].

    Example:
        >>> import torch
        >>> gaps_of_directions({"weight": torch.tensor([[0.6, 0.8]])}, {"weight": torch.tensor([[0.0, -1.0]])})
        tensor([[1.8000]], dtype=torch.float64)
    """
    cosines = [_cosines(source[name].numpy(), target[name].numpy()) for name in sorted(target)]
    return torch.as_tensor(1.0 - np.stack(cosines, axis=1).clip(-1.0, 1.0))


def _cosines(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    sums = [(source[piece] * target[piece]).sum(axis=1, dtype=np.float64) for piece in _pieces(source)]
    cosines = np.concatenate(sums)
    # Equal rows have no gap at all, those of zeros neither; looked for only where the product does not exclude it.
    for row in np.flatnonzero((cosines == 0) | (abs(cosines - 1) < 1e-6)):
        cosines[row] = 1.0 if np.array_equal(source[row], target[row]) else cosines[row]
    return cosines


def _pieces(rows: np.ndarray) -> list[slice]:
    count = max(1, _PIECE // max(1, rows.shape[1]))
    return [slice(start, start + count) for start in range(0, len(rows), count)]
