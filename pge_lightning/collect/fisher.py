"""Fisher: fit the head to an encoder that stays as it is, and then sum up how much the loss asks of each weight."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pge_lightning.collect.loss import Step
from pge_lightning.collect.starts import real
from pge_lightning.collect.warmup import Updates, check_graph, check_losses, explained, train
from pge_lightning.distributed import no_collectives
from pge_lightning.probe import Probe

__all__ = ["add_fisher"]


def add_fisher(module: nn.Module, row: Updates, draw: Callable[[], Iterable[Any]], step: Step, probe: Probe) -> None:
    r"""Fit the head, and add the diagonal of the encoder's empirical Fisher information, summed over batches.

    The head takes the probe's steps while the encoder rests. The same batches then give
    :math:`b \, \bar g^2`, with the gradient :math:`\bar g` of the mean loss of ``b`` samples: for the negative
    logarithm of a likelihood and gradients whose mean is near zero, as with a fitted head, an estimate of the mean
    over samples of their squared gradients. It is the empirical Fisher information, at the labels that the data have;
    Task2Vec (Achille et al. 2019, section 2) takes the expectation over labels that the model draws. Batches should
    be small: what is left of a mean gradient counts ``b`` times.

    Args:
        module: A restarted copy, on the device of the batches.
        row: Unit to ``[*shape]`` on the CPU; the sum is added in place, at least 0. Complex units keep the two parts
            of each number.
        draw: Gives the batches, the same at each call.
        step: The copy's own, from :func:`~pge_lightning.collect.loss.make_step`.
        probe: Gives optimizer, rate and batch size.

    Raises:
        PGEError: If a step fails, a loss is not finite, every batch was skipped, or the step communicates with other
            processes.
    """
    units = {name: unit for name, unit in module.named_parameters() if name in row}
    with _resting(units.values()):
        if any(weight.requires_grad for weight in module.parameters()):
            train(module, {}, draw(), step, probe)
    sums = {name: torch.zeros_like(row[name], device=unit.device) for name, unit in units.items()}
    losses = list[Tensor]()
    for index, batch in enumerate(draw()):
        with explained(index), no_collectives(watch=not losses):
            loss = step(batch, index)
            if loss is None:
                continue
            gradients = torch.autograd.grad(loss, list(units.values()), allow_unused=True)
            if not losses and None in gradients:
                check_graph(loss)
        losses.append(loss.detach())
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += real(gradient).square()
    check_losses(losses)
    for name, total in sums.items():
        row[name].add_(total.cpu(), alpha=probe.batch_size)


@contextmanager
def _resting(units: Iterable[nn.Parameter]) -> Generator[None]:
    """Keep weights from being trained."""
    units = list(units)
    for unit in units:
        unit.requires_grad_(False)
    try:
        yield
    finally:
        for unit in units:
            unit.requires_grad_(True)
