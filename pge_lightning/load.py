"""Load: copy an encoder's values into the model that is to be fine-tuned, and say what happened to each name."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pge_lightning.errors import PGEError

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

    Args:
        module: The module to be fine-tuned.
        weights: Name inside the module to value, as a library gives them.

    Returns:
        What was loaded, left and skipped.

    Raises:
        PGEError: If no name and shape agrees.
    """
    own = module.state_dict(keep_vars=True)
    skipped = {
        name: "not in the model" if name not in own else f"shape {list(value.shape)}, not {list(own[name].shape)}"
        for name, value in weights.items()
        if name not in own or own[name].shape != value.shape
    }
    loaded = tuple(name for name in weights if name not in skipped)
    if not loaded:
        raise PGEError(
            f"Expected weights of the same architecture, but no name and shape of {list(weights)[:3]} is in "
            f"{type(module).__name__}. Build the model as the source was built."
        )
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(weights[name])
    return LoadReport(loaded, tuple(name for name in own if name not in weights), skipped)


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
