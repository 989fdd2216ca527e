"""Loss: what a probe follows downhill, from the module's own training step or from the user."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import lightning.pytorch as pl
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from pge_lightning.errors import PGEError

__all__ = ["LossFn", "Step", "make_step"]

LossFn: TypeAlias = Callable[[Any, Any], Tensor | None]
Step: TypeAlias = Callable[[nn.Module, Any, int], Tensor | None]


def _training_step(module: nn.Module, batch: Any, index: int) -> Tensor | None:
    """The loss of the class's own ``training_step``, past any compiled method the instance may carry."""
    kind: Any = type(module)
    step = kind.training_step
    takes_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
    output = step(module, batch, index) if takes_index else step(module, batch)
    return output.get("loss") if isinstance(output, Mapping) else output


def make_step(module: nn.Module, loss_fn: LossFn | None = None) -> Step:
    """Choose where the loss comes from.

    Args:
        module: The user's module.
        loss_fn: Takes a copy of the module and a batch, and returns a scalar loss, or ``None`` to skip the batch.
            Without it, the module must be a LightningModule under automatic optimization.

    Returns:
        A function of a copy of the module, a batch and its number, that returns the loss.

    Raises:
        PGEError: If the module has no usable ``training_step`` and no ``loss_fn`` was given.
    """
    if loss_fn is not None:
        return lambda clone, batch, _: loss_fn(clone, batch)
    if not isinstance(module, pl.LightningModule):
        raise PGEError(
            f"Expected a `loss_fn` for {type(module).__name__}, which is no LightningModule, but got none. "
            "Give a function of (module, batch) that returns the loss."
        )
    if not module.automatic_optimization:
        raise PGEError(
            f"Expected automatic optimization, but {type(module).__name__} optimizes by hand: its `training_step` "
            "would move weights. Give a `loss_fn` of (module, batch) that returns the loss."
        )
    if is_param_in_hook_signature(type(module).training_step, "dataloader_iter", explicit=True):
        raise PGEError(
            f"Expected `training_step(batch)`, but that of {type(module).__name__} takes `dataloader_iter`. "
            "Give a `loss_fn` of (module, batch) that returns the loss."
        )
    return _training_step
