"""Warm-up: a few optimizer steps from a restart, and the mean direction they took."""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pge_lightning.distributed import no_collectives
from pge_lightning.errors import PGEError
from pge_lightning.loss import Step
from pge_lightning.probe import Probe

__all__ = ["Updates", "place", "warm_up"]

Updates: TypeAlias = dict[str, Tensor]


def warm_up(module: nn.Module, units: list[str], batches: Iterable[Any], step: Step, probe: Probe) -> Updates:
    r"""Train a module in place for a few steps, with the probe's own optimizer.

    The mean update of ``m`` steps at rate ``lr`` is :math:`(\theta^0 - \theta^m) / (m \cdot lr)`. Under SGD that is
    the mean gradient, which is summed up directly and so free of rounding at the scale of the weights.

    Args:
        module: A restarted copy, on the device of the batches.
        units: Names of the encoder's units.
        batches: One batch per step.
        step: The copy's own, from :func:`~pge_lightning.loss.make_step`.
        probe: Gives optimizer, rate and number of steps.

    Returns:
        Unit to its mean update, ``[*shape]`` on the CPU.

    Raises:
        PGEError: If a loss or an update is not finite, every batch was skipped, no unit moved, or the step
            communicates with other processes.
    """
    named = {name: unit for name, unit in module.named_parameters() if unit.requires_grad}
    weights = list(named.values())
    sgd = probe.optimizer == "sgd"
    optimizer = (torch.optim.SGD if sgd else torch.optim.Adam)(weights, lr=probe.lr)
    totals = {name: torch.zeros_like(named[name]) if sgd else named[name].detach().clone() for name in units}
    losses: list[Tensor] = []
    for index, batch in enumerate(batches):
        with no_collectives(watch=not losses):
            loss = step(batch, index)
            if loss is None:
                continue
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        losses.append(loss.detach())
        for unit, gradient in zip(weights, gradients, strict=True):
            unit.grad = gradient
        for name, total in totals.items() if sgd else ():
            if (latest := named[name].grad) is not None:
                total += latest
        optimizer.step()
    _check_losses(losses)
    if not sgd:
        totals = {name: (start - named[name].detach()) / probe.lr for name, start in totals.items()}
    updates = {name: total.cpu() / probe.steps for name, total in totals.items()}
    for name, update in updates.items():
        if not update.isfinite().all():
            raise PGEError(
                f"Expected finite updates, but those of unit '{name}' are not. "
                "Lower the probe's `lr`, or mend the initialisation."
            )
    if not any(update.any() for update in updates.values()):
        raise PGEError(
            "Expected the warm-up to move the encoder, but it moved none of its units: the loss does not depend on "
            "them. Name another part with `encoder=`, or give a `loss_fn` that uses the module it is given."
        )
    return updates


def _check_losses(losses: list[Tensor]) -> None:
    """Refuse a warm-up whose loss got lost on the way; one look at the end keeps the device from waiting."""
    if not losses or not torch.stack(losses).isfinite().all():
        found = torch.stack(losses).tolist() if losses else None
        raise PGEError(
            f"Expected a finite loss at every step, but got {found}. "
            "Mend the loss or the data, or lower the probe's `lr`."
        )


def place(module: nn.Module, batch: Any, device: torch.device, datamodule: pl.LightningDataModule | None = None) -> Any:
    """Bring a batch to a device in float32, through the transfer hooks of the module or of the data module.

    Args:
        module: The copy that the batch is for; a LightningModule has hooks of its own.
        batch: Any collection of tensors.
        device: Where the warm-up runs.
        datamodule: Its hooks go first where it overrides them.

    Returns:
        The batch.
    """

    def hook(name: str) -> Callable[..., Any]:
        overrides = datamodule is not None and is_overridden(name, datamodule, pl.LightningDataModule)
        chosen: Callable[..., Any] = getattr(datamodule if overrides else module, name)
        return chosen

    if isinstance(module, pl.LightningModule):
        batch = hook("on_before_batch_transfer")(batch, 0)
        batch = hook("transfer_batch_to_device")(batch, device, 0)
        batch = hook("on_after_batch_transfer")(batch, 0)
    else:
        batch = move_data_to_device(batch, device)
    return tree_map(_in_float32, batch)


def _in_float32(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    graph = hasattr(value, "apply_") and hasattr(value, "apply")  # of torch_geometric, which holds tensors of its own
    return value.apply(_in_float32) if graph else value
