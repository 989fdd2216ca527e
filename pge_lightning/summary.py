"""A summary: some samples of a data set, reduced to short vectors, for distances between data sets."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from pge_lightning.encoder_features import inputs_of, labels_of
from pge_lightning.errors import PGEError
from pge_lightning.isolation import borrowed, isolated_randomness
from pge_lightning.samples.pool import SamplePool

__all__ = ["KIND", "SAMPLES", "Summary", "reduce_inputs", "summarise"]

KIND = "summary"
SAMPLES = 500
_BATCH_SIZE = 64
_FEATURES, _BUCKETS = 64, 256
_GRIDS = {1: 16, 2: 4, 3: 4}  # numbers of dimensions beside samples and channels, to points along each
_POOLS = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


@dataclass(frozen=True)
class Summary:
    """Reduced samples of a data set, in the unit that the encoder sees them in.

    They are not standardised: that would hide how data sets differ in brightness and contrast.

    Args:
        inputs: float32 ``[samples, d]``, on the CPU.
        labels: Class numbers, int64 ``[samples]``; ``None`` where there are none.
    """

    inputs: Tensor
    labels: Tensor | None = None

    @property
    def classes(self) -> Tensor:
        """The class numbers.

        Raises:
            PGEError: If there are none.
        """
        if self.labels is None:
            raise PGEError(
                "Expected a summary with class numbers, but got one without. Give batches with one class number per "
                "sample, as the second entry or under 'labels', or compare the inputs alone."
            )
        return self.labels

    def tensors(self) -> dict[str, Tensor]:
        """What a library stores."""
        return {"inputs": self.inputs} | ({} if self.labels is None else {"labels": self.labels})


def summarise(pool: SamplePool, loader: Any, samples: int = SAMPLES) -> Summary:
    """Reduce some samples of a data set, drawn at random once and for all.

    Batches are taken as they leave the loader, before any transfer hook.

    Args:
        pool: The samples.
        loader: What the pool reads from, which is left as it was.
        samples: Most samples to draw.

    Returns:
        The summary.

    Raises:
        PGEError: If the batches hold no inputs that can be reduced.
        ValueError: If `samples` is below 1.
    """
    if samples < 1:
        raise ValueError(f"Expected `samples` to be at least 1, but got {samples}.")
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(pool), generator=generator)[:samples].tolist()
    with isolated_randomness(seed=0), borrowed(loader), torch.no_grad():
        batches = [pool.batch(chosen[start : start + _BATCH_SIZE]) for start in range(0, len(chosen), _BATCH_SIZE)]
        inputs = torch.cat([reduce_inputs(inputs_of(batch)) for batch in batches])
    labels = [labels_of(batch) for batch in batches]
    numbers = [label.cpu().long() for label in labels if isinstance(label, Tensor) and _are_classes(label)]
    return Summary(inputs, torch.cat(numbers) if len(numbers) == len(labels) else None)


def reduce_inputs(inputs: Any) -> Tensor:
    """Reduce inputs to vectors whose length is the same for all data sets of one kind and number of channels.

    Images, series and volumes are averaged over a coarse grid, long vectors over neighbours. Token numbers, integers
    ``[samples, length]``, become counts in 256 buckets by a hash of the number, at length one; what an
    ``attention_mask`` leaves out does not count, nor does 0 where there is none.

    Args:
        inputs: ``[samples, ...]``, or a mapping or sequence that holds them: under ``input_ids``, or the first tensor.

    Returns:
        float32 ``[samples, d]``, on the CPU.

    Raises:
        PGEError: If there is no such tensor.

    Example:
        >>> reduce_inputs(torch.ones(8, 3, 28, 28)).shape, reduce_inputs(torch.ones(8, 12, dtype=torch.long)).shape
        (torch.Size([8, 48]), torch.Size([8, 256]))
    """
    named = inputs if isinstance(inputs, Mapping) else {}
    leaves = [leaf for leaf in tree_leaves(named.get("input_ids", inputs)) if isinstance(leaf, Tensor)]
    found = leaves[0].detach().cpu() if leaves else torch.empty(())
    if not 1 <= found.ndim <= 5 or found.is_complex():
        got = f"{found.dtype} of shape {list(found.shape)}" if leaves else "none"
        raise PGEError(
            f"Expected inputs `[samples, ...]` of real numbers in one to five dimensions, but got {got}. "
            "Leave summaries out for such data."
        )
    if found.ndim == 2 and not found.is_floating_point() and found.dtype not in (torch.uint8, torch.bool):
        return _bag_of_words(found.long(), named.get("attention_mask"))
    if found.ndim > 2:
        dimensions = found.ndim - 2
        pooled: Tensor = _POOLS[dimensions](found.float(), _GRIDS[dimensions])
        return pooled.flatten(1)
    vectors = found.float().reshape(len(found), -1)
    return F.adaptive_avg_pool1d(vectors, _FEATURES) if vectors.shape[1] > _FEATURES else vectors


def _bag_of_words(tokens: Tensor, mask: Any) -> Tensor:
    counted = mask.detach().cpu() if isinstance(mask, Tensor) and mask.shape == tokens.shape else tokens != 0
    buckets = (tokens * 2654435761 % 2**32) // 2**24  # Knuth's multiplicative hash: the high bits are the mixed ones
    counts = torch.zeros(len(tokens), _BUCKETS).scatter_add_(1, buckets, counted.float())
    return F.normalize(counts, dim=1)


def _are_classes(labels: Tensor) -> bool:
    return labels.ndim == 1 and not (labels.is_floating_point() or labels.is_complex())
