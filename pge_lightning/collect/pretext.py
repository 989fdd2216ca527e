"""Pretext: a loss that asks for nothing but inputs, for probes that need no labels."""

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from pge_lightning.collect.loss import Step, with_trainer
from pge_lightning.encoder import EncoderSpec
from pge_lightning.encoder_features import FeaturesFn, features_of, inputs_of
from pge_lightning.errors import PGEError
from pge_lightning.isolation import derive_seed
from pge_lightning.probe import PretextKind

__all__ = ["Pretext", "projected_input", "reduced_input", "unlabelled_batches", "word_profile"]

HEAD = "_pretext_head"  # the name of the head in a copy of the user's module
POINTS = {1: 16, 2: 7, 3: 4}  # what is kept of each dimension of series, images and volumes
PROJECTIONS = 64
WORDS = 512
OTHERWISE = "Give a `loss_fn` of (module, batch) that needs no labels, and a probe without `pretext`."


class Pretext:
    """The loss of label-free probes.

    A linear head on the encoder's features is to tell what the inputs were, by the mean squared error. It starts from a
    draw of its own for every data set, as heads for labels do: where it started alike everywhere, gaps told less.

    Args:
        kind: ``"reduced"``, ``"projection"``, ``"words"``, or ``"auto"``: words where inputs are integers ``[batch]``
            or ``[batch, length]``, else the reduced input.
        encoder: Names the transferred part: submodule, pattern over parameter names, or callable.
        features: Takes a copy of the module and a batch and returns features ``[batch, d]``; by default those that
            leave the encoder.
    """

    def __init__(self, kind: PretextKind, encoder: EncoderSpec = None, features: FeaturesFn | None = None) -> None:
        self.kind, self.encoder, self.features = kind, encoder, features
        self._shape = 0, 0

    def add_head(self, copied: nn.Module, seed: int) -> None:
        """Give a copy of the module a head, after the first step of another copy has shown its shape.

        Args:
            copied: The copy, on the CPU; it gets one more submodule.
            seed: Of the head's start.
        """
        width, outputs = self._shape
        head, generator = nn.Linear(width, outputs), torch.Generator().manual_seed(derive_seed(seed, HEAD))
        for unit in head.parameters():
            nn.init.uniform_(unit, -(width**-0.5), width**-0.5, generator=generator)
        copied.add_module(HEAD, head)

    def step(self, copied: nn.Module) -> Step:
        """The step of one copy of the module.

        Args:
            copied: The copy, with a head or, to find out its shape, without.

        Returns:
            A function of a batch and its number that gives the loss ``[]``; ``None`` where a head is missing.
        """
        with_trainer(copied)

        def step(batch: Any, _: int) -> Tensor | None:
            tensor = _main_tensor(inputs_of(batch))
            kind = ("words" if _are_words(tensor) else "reduced") if self.kind == "auto" else self.kind
            target = TARGETS[kind](tensor)
            features = self._features(copied, batch, len(target))
            self._shape = features.shape[1], target.shape[1]
            head = copied._modules.get(HEAD)
            return None if head is None else F.mse_loss(head(features), target)

        return step

    def _features(self, copied: nn.Module, batch: Any, samples: int) -> Tensor:
        if self.features is None:
            return features_of(copied, self.encoder, batch)
        features = self.features(copied, batch)
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != samples:
            got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise PGEError(
                f"Expected `features` to return a tensor [{samples}, d] for {samples} samples, but got {got}."
            )
        return features


def reduced_input(inputs: Tensor) -> Tensor:
    """Averages of neighbouring entries: what is seen of inputs from afar.

    Args:
        inputs: Series ``[batch, c, t]``, images ``[batch, c, h, w]``, volumes ``[batch, c, d, h, w]``, or vectors
            ``[batch, n]``, of any type of numbers.

    Returns:
        ``[batch, k]``: of each channel 16 points of a series, 7x7 of an image, 4x4x4 of a volume, and up to 64 entries
        of a vector.

    Raises:
        PGEError: If there are no dimensions to average over, or too many.

    Example:
        >>> reduced_input(torch.zeros(5, 3, 32, 32)).shape, reduced_input(torch.zeros(5, 6)).shape
        (torch.Size([5, 147]), torch.Size([5, 6]))
    """
    dense = _dense(inputs)
    if dense.ndim == 2:
        return dense if dense.shape[1] <= PROJECTIONS else F.adaptive_avg_pool1d(dense, PROJECTIONS)
    if dense.ndim - 2 not in POINTS:
        raise PGEError(f"Expected inputs of 2 to 5 dimensions for a pretext, but got {list(inputs.shape)}. {OTHERWISE}")
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[dense.ndim - 3]
    pooled: Tensor = pool(dense, POINTS[dense.ndim - 2])
    return pooled.flatten(1)


def projected_input(inputs: Tensor) -> Tensor:
    """A fixed random projection of inputs.

    Args:
        inputs: Numbers of any type, ``[batch, ...]``; where data sets have inputs of several shapes, their projections
            have nothing in common.

    Returns:
        ``[batch, 64]``.

    Example:
        >>> projected_input(torch.zeros(5, 3, 8)).shape
        torch.Size([5, 64])
    """
    flat = _dense(inputs).flatten(1)
    generator = torch.Generator().manual_seed(derive_seed(0, "projection"))
    matrix = torch.randn(flat.shape[1], PROJECTIONS, generator=generator).to(flat) / flat.shape[1] ** 0.5
    projected: Tensor = flat @ matrix
    return projected


def word_profile(tokens: Tensor) -> Tensor:
    """Which words a text holds, whatever its length; several words share one of 512 places.

    Args:
        tokens: Token numbers, integers ``[batch]`` or ``[batch, length]``, 0 for padding.

    Returns:
        ``[batch, 512]``: counts, scaled to a mean square of one in every text, as images and series usually have it.
        Against much smaller numbers the head's own start would decide what the encoder is asked for.

    Raises:
        PGEError: If these are no token numbers.

    Example:
        >>> profile = word_profile(torch.tensor([[3, 3, 3, 3, 7, 7, 7, 0]]))
        >>> [round(profile[0, word].item(), 2) for word in (0, 3, 7)], round(512**0.5 / 5, 2)
        ([0.0, 18.1, 13.58], 4.53)
    """
    if not _are_words(tokens):
        raise PGEError(
            f"Expected token numbers for words, integers [batch, length], but got {tokens.dtype} of shape "
            f"{list(tokens.shape)}. Choose another `pretext`, such as 'reduced'."
        )
    numbers = tokens.reshape(len(tokens), -1).long()
    counts = torch.zeros(len(numbers), WORDS, device=tokens.device)
    counts.scatter_add_(1, numbers % WORDS, (numbers != 0).float())
    lengths: Tensor = counts.norm(dim=1, keepdim=True)
    return counts * math.sqrt(WORDS) / lengths.clamp(min=1)


def unlabelled_batches(
    batches: Any, limit: int | None, datamodule: pl.LightningDataModule | None
) -> tuple[Any, int | None]:
    """What a label-free probe reads.

    Args:
        batches: The training data.
        limit: Most batches of them to consider.
        datamodule: Where it has an ``unlabelled_dataloader``, that takes their place.

    Returns:
        Batches, and a limit for them.
    """
    offered = getattr(datamodule, "unlabelled_dataloader", None)
    return (batches, limit) if offered is None else (offered(), None)


TARGETS = {"reduced": reduced_input, "projection": projected_input, "words": word_profile}


def _main_tensor(inputs: Any) -> Tensor:
    """The tensor that inputs are mainly about: token numbers by their customary name, or the first with values."""
    if isinstance(inputs, Mapping) and isinstance(inputs.get("input_ids"), Tensor):
        tokens: Tensor = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        return tokens * (mask != 0) if isinstance(mask, Tensor) and mask.shape == tokens.shape else tokens
    leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    if not leaves:
        raise PGEError(f"Expected inputs with a tensor for a pretext, but got a {type(inputs).__name__}. {OTHERWISE}")
    return next((leaf for leaf in leaves if not _integral(leaf)), leaves[0])


def _integral(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


def _are_words(tensor: Tensor) -> bool:
    """Whether integers stand for things, and not for brightness or truth."""
    return _integral(tensor) and tensor.dtype not in (torch.uint8, torch.bool) and tensor.ndim <= 2


def _dense(inputs: Tensor) -> Tensor:
    """Real numbers ``[batch, ...]`` of at least two dimensions."""
    real = torch.view_as_real(inputs).movedim(-1, 1) if inputs.is_complex() else inputs
    return real.detach().float().reshape(len(real), *(real.shape[1:] or (1,)))
