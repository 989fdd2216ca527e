"""Unwrap: a module as its user wrote it, below what compiling, Fabric or data-parallel training puts around it."""

import copy
from typing import Any

from lightning.fabric.wrappers import is_wrapped
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["plain", "wrapped"]


def plain(module: nn.Module) -> nn.Module:
    """Look through all wrappers, around the module and around its parts, so that names are those of the plain module.

    Args:
        module: Any module, for instance from ``torch.compile`` or ``Fabric.setup``.

    Returns:
        The module itself below all wrappers. Where some are around its parts, a view: other objects above the wrappers,
        the same parameters, buffers and attributes.

    Example:
        >>> import torch
        >>> model = nn.Sequential(torch.compile(nn.Linear(2, 1)))
        >>> [name for name, _ in model.named_parameters()]
        ['0._orig_mod.weight', '0._orig_mod.bias']
        >>> [name for name, _ in plain(model).named_parameters()]
        ['0.weight', '0.bias']
    """
    return _view(module, {})


def wrapped(part: Any) -> nn.Module | None:
    """What a wrapper holds.

    Args:
        part: Any module.

    Returns:
        The module inside, or ``None`` if it is no wrapper.
    """
    if "_orig_mod" in part._modules:  # asking for the class would import the compiler, which takes seconds
        inner: nn.Module = part._modules["_orig_mod"]
        return inner
    wraps = is_wrapped(part) or isinstance(part, (DataParallel, DistributedDataParallel))
    return part.module if wraps else None


def _view(module: nn.Module, seen: dict[int, nn.Module]) -> nn.Module:
    """The same module below its wrappers, its parts likewise; what is reached in two ways stays one."""
    outer = module
    while (inner := wrapped(module)) is not None:
        module = inner
    if id(module) not in seen:
        seen[id(module)] = module
        if any(wrapped(part) is not None for part in module.modules()):
            seen[id(module)] = view = copy.copy(module)
            parts = {name: None if part is None else _view(part, seen) for name, part in module._modules.items()}
            vars(view)["_modules"] = parts
    seen[id(outer)] = seen[id(module)]
    return seen[id(module)]
