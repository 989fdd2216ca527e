"""Clone: a copy of the user's module that training, logs and other processes never see."""

import copy
from types import MethodType
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from pge_lightning.errors import PGEError

__all__ = ["isolated_copy"]


def _ignore(*_: Any, **__: Any) -> None:
    """Stands where a copy of a module would log."""


def _uncompile(part: nn.Module) -> None:
    """Give a copy its own methods back: a compiled one is a closure, which a deep copy leaves at the original."""
    for name, value in list(vars(part).items()):
        method = getattr(value, "_torchdynamo_orig_callable", None)
        if isinstance(method, MethodType) and type(method.__self__) is type(part):
            vars(part)[name] = MethodType(method.__func__, part)


def isolated_copy(module: nn.Module) -> nn.Module:
    """A deep copy in float32 that logs nothing and is in training mode, unless single submodules are set otherwise.

    Args:
        module: The user's module; it is not touched.

    Returns:
        The copy, on the CPU.

    Raises:
        PGEError: If the module cannot be copied.
    """
    try:
        clone = copy.deepcopy(module)
    except Exception as error:  # users' classes raise errors of their own kinds
        raise PGEError(
            f"Expected a module that `copy.deepcopy` can copy, but got {type(module).__name__}: {error}. "
            "Replace what cannot be copied (the old `torch.nn.utils.weight_norm` has a successor in "
            "`torch.nn.utils.parametrizations`)."
        ) from error
    clone = clone.to(device="cpu", dtype=torch.float32)
    if not clone.training:
        clone.train()
    for part in clone.modules():
        _uncompile(part)
        if isinstance(part, pl.LightningModule):
            vars(part).update(log=_ignore, log_dict=_ignore)
    return clone
