"""Collecting one signature in plain PyTorch."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from pge_lightning.collect.collector import Collector
from pge_lightning.collect.loss import LossFn
from pge_lightning.encoder import EncoderSpec
from pge_lightning.encoder_features import FeaturesFn
from pge_lightning.probe import Probe
from pge_lightning.restart import Factory
from pge_lightning.signature import Signature

__all__ = ["collect_signature"]


def collect_signature(
    module: nn.Module,
    batches: DataLoader[Any] | Iterable[Any],
    *,
    loss_fn: LossFn | None = None,
    probe: Probe | str = "default",
    budget: int | None = None,
    encoder: EncoderSpec = None,
    features: FeaturesFn | None = None,
    factory: Factory | None = None,
    device: torch.device | str | None = None,
    distributed: bool = False,
    progress: bool = False,
    thaw: bool = False,
) -> Signature:
    """Collect the principal gradients of one data set, in plain PyTorch.

    Neither the module nor the loader, its samplers or the global random state are changed.

    Args:
        module: Any module; a LightningModule brings its own loss.
        batches: A ``DataLoader``, any iterable of batches, or several of them as Lightning combines them.
        loss_fn: Takes a copy of the module and a batch and returns a scalar loss; a label-free probe needs none.
        probe: The recipe, or the name of a shipped one.
        budget: Sample budget; by default the largest rung of the probe's ladder that the samples fill.
        encoder: Names the transferred part: submodule, pattern over parameter names, or callable.
        features: For a label-free probe: takes a copy of the module and a batch and returns features ``[batch, d]``; by
            default those that leave the encoder.
        factory: Builds a fresh module of the same kind, where re-initialisation needs help.
        device: Where the warm-up runs; by default where the module is.
        distributed: Whether all processes of the default group call this, to share samples and restarts, and each get
            the same signature. By default this one works alone.
        progress: Whether to show a bar over the restarts.
        thaw: Whether frozen parameters of the encoder count as trainable, for a module that is thawed while it trains.

    Returns:
        The signature: per unit ``[restarts, *shape]``; complex units have a last dimension of two.

    Raises:
        PGEError: If something is missing (checked before any work starts), or a loss is not finite.
        ValueError: If the budget is larger than the number of samples or smaller than a batch.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batches = [(torch.randn(64, 4), torch.randint(2, (64,))) for _ in range(4)]
        >>> loss = lambda module, batch: nn.functional.cross_entropy(module(batch[0]), batch[1])
        >>> signature = collect_signature(model, batches, loss_fn=loss, probe="fast", encoder="0")
        >>> {name: list(stack.shape) for name, stack in signature.units.items()}
        {'0.weight': [2, 8, 4], '0.bias': [2, 8]}
        >>> inputs = [inputs for inputs, _ in batches]
        >>> without_labels = collect_signature(model, inputs, probe="label_free", encoder="0")
        >>> without_labels.budget, without_labels.restarts
        (200, 8)
    """
    collector = Collector(
        module,
        batches,
        probe=probe,
        loss_fn=loss_fn,
        encoder=encoder,
        features=features,
        factory=factory,
        device=device,
        distributed=distributed,
        progress=progress,
        thaw=thaw,
    )
    if budget is not None and not collector.probe.batch_size <= budget <= len(collector.pool):
        raise ValueError(
            f"Expected `budget` between a batch of {collector.probe.batch_size} and the {len(collector.pool)} samples "
            f"there are, but got {budget}."
        )
    return collector.collect(collector.budgets[-1] if budget is None else budget)
