"""Closures: functions that a deep copy leaves at the original, because it takes functions for constants."""

from copy import copy
from types import CellType, FunctionType
from typing import Any

from torch import Tensor, nn

__all__ = ["rebind"]


def rebind(clone: nn.Module, copies: dict[int, Any]) -> nn.Module:
    """Let the hooks and the functions kept by a copied module use the copy, not the original they were made for.

    Args:
        clone: The copy, changed in place.
        copies: Identity of each object of the original to its copy: the memo of :func:`copy.deepcopy`.

    Returns:
        The copy.
    """
    for part in clone.modules():
        kept = vars(part)
        for name, value in kept.items():
            if isinstance(value, FunctionType):
                kept[name] = _rebound(value, copies)
            elif isinstance(value, (dict, list)):
                for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                    if isinstance(item, FunctionType):
                        value[key] = _rebound(item, copies)
    return clone


def _rebound(function: FunctionType, copies: dict[int, Any]) -> Any:
    """The function over the copies of what it encloses; itself if it encloses nothing that was copied."""
    if id(function) in copies:
        return copies[id(function)]
    copies[id(function)] = function  # one that encloses itself
    enclosed = function.__closure__ or ()
    cells = tuple(_twin_cell(cell, copies) for cell in enclosed)
    if any(cell is not other for cell, other in zip(cells, enclosed, strict=True)):
        twin = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, cells)
        twin.__kwdefaults__ = function.__kwdefaults__
        twin.__dict__.update(function.__dict__)
        copies[id(function)] = twin
    return copies[id(function)]


def _twin_cell(cell: CellType, copies: dict[int, Any]) -> CellType:
    try:
        value = cell.cell_contents
    except ValueError:  # still empty
        return cell
    if isinstance(value, FunctionType):
        twin = _rebound(value, copies)
    else:
        # What only functions know of would be changed by the copy's runs, too.
        if id(value) not in copies and type(value) in (list, dict, set, Tensor):
            copies[id(value)] = value.detach().clone() if isinstance(value, Tensor) else copy(value)
        twin = copies.get(id(value), value)
    return cell if twin is value else CellType(twin)
