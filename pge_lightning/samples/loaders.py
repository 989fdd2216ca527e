"""Loaders: which samples a ``DataLoader`` would read, and reading them without moving it."""

import copy
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from lightning.fabric.wrappers import is_wrapped
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Subset, TensorDataset, default_collate

from pge_lightning.samples.pool import SamplePool, collated

__all__ = ["NumberedSamples", "has_own_iterator", "length", "unwrapped", "visited", "without_workers"]


class NumberedSamples(SamplePool):
    """Reads a map-style data set in this process: what the loader's workers or samplers hold is never touched.

    Args:
        loader: A loader over a map-style data set.
        indices: Which of its samples there are.
    """

    def __init__(self, loader: DataLoader[Any], indices: Sequence[int]) -> None:
        self.loader, self.indices = loader, indices

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> Any:
        """The samples of these indices, as the loader would read and collate them."""
        dataset: Any = self.loader.dataset
        collate = self.loader.collate_fn
        chosen = [self.indices[i] for i in indices]
        if _overrides(self.loader, "_get_iterator"):
            return next(iter(self._only(chosen)))
        while type(dataset) is Subset:
            dataset, chosen = dataset.dataset, [dataset.indices[i] for i in chosen]
        if type(dataset) is TensorDataset and collate is default_collate:
            where = torch.as_tensor(chosen)
            return [tensor[where] for tensor in dataset.tensors]
        if callable(together := getattr(dataset, "__getitems__", None)):
            return collated(together(chosen), collate)
        return collated([dataset[i] for i in chosen], collate)

    def _only(self, chosen: list[int]) -> DataLoader[Any]:
        """A loader of one batch."""
        other = copy.copy(self.loader)
        without_workers(other)
        vars(other)["batch_sampler"] = [chosen]
        return other


def _overrides(loader: DataLoader[Any], name: str) -> bool:
    """Whether a loader's class goes its own way; one with a state only keeps count of what it gives."""
    return getattr(type(loader), name) is not getattr(DataLoader, name) and not hasattr(loader, "state_dict")


def without_workers(loader: DataLoader[Any]) -> None:
    """Let a copy of a loader read in this process."""
    alone = {"num_workers": 0, "timeout": 0, "persistent_workers": False, "pin_memory": False, "_iterator": None}
    vars(loader).update(alone)  # a loader that is set up refuses some changes


def unwrapped(data: Any) -> Any:
    """A loader as its user made it, below what ``Fabric.setup_dataloaders`` puts around it; anything else as it is."""
    return data._dataloader if is_wrapped(data) else data


def has_own_iterator(loader: DataLoader[Any]) -> bool:
    """Whether a loader's batches are more than its data set's samples, collated: only its own iterator gives them."""
    streams = isinstance(loader.dataset, IterableDataset)
    # An endless batch sampler under an `__iter__` of its own is the customary way to keep workers over epochs.
    repeats = not streams and loader.batch_sampler is not None and length(loader.batch_sampler) is None
    return (_overrides(loader, "__iter__") and not repeats) or (_overrides(loader, "_get_iterator") and streams)


def length(sized: Any) -> int | None:
    """The length, where there is one: samplers and streams may be endless."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def visited(loader: DataLoader[Any], limit: int | None) -> list[int]:
    """Ask the loader's samplers which samples it may read.

    A plain batch sampler is looked through to its sampler, so that an incomplete last batch counts, too. An endless
    one is read for as many samples as the data set holds.

    Args:
        loader: A loader over a map-style data set.
        limit: Most batches to consider: then the first ones tell.

    Returns:
        Indices into the data set, in ascending order.
    """
    batches: Any = loader.batch_sampler
    size, number = length(loader.dataset), length(batches)
    whole = limit is None or (number is not None and limit >= number)
    if type(batches) is BatchSampler and whole:
        return sorted({int(index) for index in islice(iter(batches.sampler), size)})
    read: Iterator[Any] = chain.from_iterable(islice(iter(batches), limit))
    return sorted({int(index) for index in (islice(read, size) if whole and number is None else read)})
