"""Load: copy an encoder's values into the model that is to be fine-tuned, and say what happened to each name."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import cast

import torch
from lightning.fabric.wrappers import is_wrapped
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pge_lightning.errors import PGEError
from pge_lightning.isolation import plain
from pge_lightning.sharding import load_shards, sharding, whole_shapes

__all__ = ["LoadReport", "load_encoder", "whole_or_not_at_all"]


@dataclass(frozen=True)
class LoadReport:
    """What happened to each name when an encoder was loaded.

    Args:
        loaded: Names whose values were copied into the model.
        left: Names of the model that the source does not have; they keep their values.
        skipped: Names of the source that the model does not have in this shape, with the reason.
    """

    loaded: tuple[str, ...]
    left: tuple[str, ...]
    skipped: dict[str, str]

    def __str__(self) -> str:
        skipped = "".join(f"; skipped {name}: {reason}" for name, reason in self.skipped.items())
        return f"loaded {len(self.loaded)} tensors, left {len(self.left)} ({', '.join(self.left[:4])}){skipped}"


def load_encoder(module: nn.Module, weights: Mapping[str, Tensor]) -> LoadReport:
    """Copy an encoder's values into a module, in place: optimizers that hold its parameters go on with them.

    The module may be wrapped, as ``Fabric.setup`` leaves it. It may be sharded: by ``fully_shard`` or tensor
    parallelism, where parameters are DTensors, or by ``FullyShardedDataParallel``. Then every process must call this,
    with the same weights.

    Args:
        module: The module to be fine-tuned.
        weights: Name inside the module to value, as a library gives them.

    Returns:
        What was loaded, left and skipped.

    Raises:
        PGEError: If no name and shape agrees, or the module is sharded by other means.
    """
    module = _named_plainly(module)
    own = whole_shapes(module)
    reasons = {name: _misfit(name, value, own) for name, value in weights.items()}
    skipped = {name: reason for name, reason in reasons.items() if reason}
    chosen = {name: value for name, value in weights.items() if name not in skipped}
    if not chosen:
        raise PGEError(
            f"Expected weights of the same architecture, but no name and shape of {list(weights)[:3]} is in "
            f"{type(module).__name__}. Build the model as the source was built."
        )
    if sharding(module):
        load_shards(module, chosen)
    else:
        _copy(chosen, module)
    return LoadReport(tuple(chosen), tuple(name for name in own if name not in weights), skipped)


def _named_plainly(module: nn.Module) -> nn.Module:
    """The module below its wrappers; but what FSDP has made of it, where it has, speaks for all pieces."""
    if not sharding(module):
        return plain(module)
    return cast(nn.Module, module._forward_module) if is_wrapped(module) else module


def _misfit(name: str, value: Tensor, own: Mapping[str, torch.Size | None]) -> str:
    """Why a value cannot be loaded; nothing if it can."""
    if name not in own:
        return "not in the model"
    shape = own[name]
    return "" if shape is None or shape == value.shape else f"shape {list(value.shape)}, not {list(shape)}"


@torch.no_grad()
def _copy(weights: Mapping[str, Tensor], module: nn.Module) -> None:
    own = module.state_dict(keep_vars=True)
    for name, value in weights.items():
        if is_lazy(own[name]):
            own[name].materialize(value.shape)
        own[name].copy_(value)


@contextmanager
def whole_or_not_at_all(module: nn.Module) -> Generator[None]:
    """Give a module its values back if loading into it is interrupted.

    Args:
        module: What is loaded into.

    Yields:
        Nothing.
    """
    values = [value for value in chain(module.parameters(), module.buffers()) if not is_lazy(value)]
    before = [(value, value.detach().clone()) for value in values]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for value, kept in before:
                value.copy_(kept)
        raise
