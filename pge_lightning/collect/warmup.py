"""Warm-up: a few optimizer steps from a restart, and the mean direction they took."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pge_lightning.collect.loss import Step
from pge_lightning.collect.starts import real
from pge_lightning.distributed import no_collectives
from pge_lightning.errors import PGEError
from pge_lightning.isolation.memory import give_back
from pge_lightning.probe import Probe

__all__ = ["Updates", "check_graph", "check_losses", "check_updates", "explained", "place", "train", "warm_up"]

_LARGE = 2**26  # bytes from which gradients that were freed, but cannot be filled again, weigh more than the time

Updates: TypeAlias = dict[str, Tensor]


def warm_up(module: nn.Module, row: Updates, batches: Iterable[Any], step: Step, probe: Probe) -> None:
    r"""Train a module in place for a few steps, with the probe's own optimizer.

    The mean update of ``m`` steps at rate ``lr`` is :math:`(\theta^0 - \theta^m) / (m \cdot lr)`. Under SGD that is
    the mean gradient, which is summed up directly and so free of rounding at the scale of the weights. Under Adam the
    caller adds the start.

    Args:
        module: A restarted copy, on the device of the batches.
        row: Unit to ``[*shape]`` on the CPU, changed in place: under SGD all gradients are added, under Adam the values
            at the end are subtracted.
        batches: One batch per step.
        step: The copy's own, from :func:`~pge_lightning.collect.loss.make_step`.
        probe: Gives optimizer, rate and number of steps.

    Raises:
        PGEError: If a step fails, a loss is not finite, every batch was skipped, or the step communicates with other
            processes.
    """
    units = {name: unit for name, unit in module.named_parameters() if name in row}
    give_back()
    if probe.walks:
        train(module, {}, batches, step, probe)
        give_back()
        for name, unit in units.items():
            row[name].sub_(real(unit.detach()).cpu())
        return
    sums = {name: row[name].to(unit.device) for name, unit in units.items()}
    train(module, sums, batches, step, probe)
    for name, total in sums.items():
        row[name].copy_(total)


def train(module: nn.Module, sums: Updates, batches: Iterable[Any], step: Step, probe: Probe) -> None:
    """Take the steps, and add the gradients of some units to their sums; the optimizer ends with this function."""
    named = {name: unit for name, unit in module.named_parameters() if unit.requires_grad}
    weights = list(named.values())
    optimizer = _optimizer(weights, probe)
    large = sum(unit.nbytes for unit in weights if unit.device.type == "cpu") > _LARGE
    losses: list[Tensor] = []
    for index, batch in enumerate(batches):
        with explained(index), no_collectives(watch=not losses):
            loss = step(batch, index)
            if loss is None:
                continue
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
            if not losses and None in gradients:
                check_graph(loss)
        losses.append(loss.detach())
        for unit, gradient in zip(weights, gradients, strict=True):
            unit.grad = gradient
        del gradients, loss
        for name, total in sums.items():
            if (latest := named[name].grad) is not None:
                total += real(latest)
        optimizer.step()
        optimizer.zero_grad()
        if large:
            give_back()
    check_losses(losses)


def check_graph(loss: Tensor) -> None:
    """Refuse a loss that hides weights: re-entrant checkpointing gives them no gradient but by ``backward``."""
    left, seen = [loss.grad_fn], set[Any]()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            raise PGEError(
                "Expected a loss whose graph reaches all weights, but re-entrant checkpointing hides some. Call "
                "`torch.utils.checkpoint.checkpoint` with `use_reentrant=False`; in Hugging Face models, "
                "`gradient_checkpointing_enable({'use_reentrant': False})`."
            )
        seen.add(node)
        left += [following for following, _ in node.next_functions]


def _optimizer(weights: list[nn.Parameter], probe: Probe) -> torch.optim.Optimizer:
    if probe.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=probe.lr)
    # Fused steps need no memory beside the state, and are faster; they know no complex numbers.
    fused = all(unit.device.type in ("cpu", "cuda") and not unit.is_complex() for unit in weights)
    return torch.optim.Adam(weights, lr=probe.lr, fused=fused)


@contextmanager
def explained(index: int) -> Generator[None]:
    """Say which step an error comes from, and what may help."""
    try:
        yield
    except PGEError as error:
        raise PGEError(f"In step {index}: {error}") from error
    except SIGTERMException:
        raise
    except Exception as error:  # of any kind: the step is the user's
        raise PGEError(
            f"In step {index}: Expected a training step that a copy of the module can take, but it raised "
            f"{type(error).__name__}: {error}. If it needs what only a running Trainer gives, give a `loss_fn` of "
            "(module, batch) that does without."
        ) from error


def check_updates(row: Updates) -> None:
    """Refuse updates that say nothing.

    Args:
        row: Unit to its update, ``[*shape]``.

    Raises:
        PGEError: If an update is not finite, or no unit moved.
    """
    for name, update in row.items():
        if not update.isfinite().all():
            raise PGEError(
                f"Expected finite updates, but those of unit '{name}' are not. "
                "Lower the probe's `lr`, or mend the initialisation."
            )
    if not any(update.any() for update in row.values()):
        raise PGEError(
            "Expected the warm-up to move the encoder, but it moved none of its units: the loss does not depend on "
            "them. Name another part with `encoder=`, or give a `loss_fn` that uses the module it is given."
        )


def check_losses(losses: list[Tensor]) -> None:
    """Refuse a warm-up whose loss got lost on the way; one look at the end keeps the device from waiting."""
    if not losses:
        raise PGEError(
            "Expected a loss from one step at least, but got None for every batch, which skips it. Return the loss, or "
            "give a `loss_fn` that does."
        )
    if not torch.stack(losses).isfinite().all():
        raise PGEError(
            f"Expected a finite loss at every step, but got {torch.stack(losses).tolist()}. "
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
        value = value.clone() if value.is_inference() else value  # autograd refuses to save such tensors
        return value.float() if value.is_floating_point() else value
    graph = hasattr(value, "apply_") and hasattr(value, "apply")  # of torch_geometric, which holds tensors of its own
    return value.apply(_in_float32) if graph else value
