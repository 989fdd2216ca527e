"""Racer: a copy of a module that takes fine-tuning steps and is judged on samples it has not seen."""

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from pge_lightning.collect.loss import Step
from pge_lightning.distributed import no_collectives
from pge_lightning.errors import PGEError
from pge_lightning.isolation.stand_in import stand_in_trainer
from pge_lightning.race.accuracy import CountedHits

__all__ = ["Racer", "evaluating", "make_optimizer"]


class Racer:
    """One copy of a module under an optimizer.

    Args:
        clone: The copy, on its device, with the weights it starts from.
        step: The copy's own step.
        horizon: Steps it may be asked for, for schedules that want to know.
        lr: Rate of AdamW, where that takes the place of the module's own optimizer.
    """

    def __init__(self, clone: nn.Module, step: Step, horizon: int, lr: float) -> None:
        self.clone, self.step = clone, step
        self.weights = [unit for unit in clone.parameters() if unit.requires_grad]
        self.optimizer = make_optimizer(clone, horizon, lr)

    def train(self, batches: Iterable[tuple[int, Any]]) -> None:
        """Take one optimizer step per batch; batches that the module skips count, too.

        Args:
            batches: Number of each step, and its batch.
        """
        for number, batch in batches:
            self.optimizer.step(partial(self._backward, number, batch))

    def judge(self, batches: Iterable[tuple[int, Any]]) -> tuple[float, float | None]:
        """Mean loss and accuracy in evaluation mode; weights, buffers of batch norms and modes stay as they are.

        Args:
            batches: Number of samples in each batch, and the batch.

        Returns:
            The loss, lower is better; the accuracy in [0, 1], where the step computes a cross entropy of class numbers.

        Raises:
            PGEError: If the loss is not finite, or the module skips every batch.
        """
        with evaluating(self.clone), CountedHits() as hits:
            found = [(size, self.step(batch, 0)) for size, batch in batches]
        losses = [(size, float(loss.detach())) for size, loss in found if loss is not None]
        total = sum(size for size, _ in losses)
        mean = math.fsum(size * loss for size, loss in losses) / total if total else math.nan
        if not math.isfinite(mean):
            raise PGEError(f"Expected a finite loss on held-out samples, but got {mean}. Look at the weights it loads.")
        return mean, hits.accuracy

    def _backward(self, number: int, batch: Any) -> float:
        """The closure of a step: fresh gradients, and the loss."""
        self.optimizer.zero_grad()
        with no_collectives():
            loss = self.step(batch, number)
            if loss is None:
                return math.nan
            gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
        for unit, gradient in zip(self.weights, gradients, strict=True):
            unit.grad = gradient
        return float(loss.detach())


@contextmanager
def evaluating(module: nn.Module) -> Generator[None]:
    """Set a module to evaluation mode, and its parts back to their own modes on leaving.

    Args:
        module: The module.

    Yields:
        Nothing.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def make_optimizer(clone: nn.Module, horizon: int, lr: float) -> torch.optim.Optimizer:
    """The optimizer that fine-tuning would use, at the constant rate that its schedule peaks at; AdamW without one.

    Args:
        clone: A copy of the module.
        horizon: Steps that schedules are told of.
        lr: Rate of AdamW.

    Returns:
        An optimizer of the copy's own weights.
    """
    weights = [unit for unit in clone.parameters() if unit.requires_grad]
    found = _configured(clone, horizon) if isinstance(clone, pl.LightningModule) else None
    held = [unit for group in found.param_groups for unit in group["params"]] if found is not None else []
    if found is None or not {id(unit) for unit in held} <= {id(unit) for unit in clone.parameters()}:
        return torch.optim.AdamW(weights, lr=lr)
    for group in found.param_groups:
        # Schedules begin low, often at zero, and are not followed here.
        group["lr"] = group.get("max_lr", group.get("initial_lr", group["lr"]))
    return found


def _configured(clone: pl.LightningModule, horizon: int) -> torch.optim.Optimizer | None:
    """What the module configures, if that is one optimizer and can be had without its Trainer."""
    if not is_overridden("configure_optimizers", clone):
        return None
    attached, trainer = clone._trainer, stand_in_trainer()
    # So much answers `estimated_stepping_batches`, which would otherwise load data.
    trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = -1, horizon
    clone.trainer = trainer
    try:
        return _single(clone.configure_optimizers())
    except Exception:  # of any kind: what the Trainer has yet to make is missed by the user's own code
        return None
    finally:
        clone.trainer = attached


def _single(configured: Any) -> torch.optim.Optimizer | None:
    """The one optimizer in what ``configure_optimizers`` may return."""
    if isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], Sequence):
        configured = configured[0]
    if isinstance(configured, Sequence):
        configured = configured[0] if len(configured) == 1 else None
    if isinstance(configured, Mapping):
        configured = configured.get("optimizer")
    return configured if isinstance(configured, torch.optim.Optimizer) else None
