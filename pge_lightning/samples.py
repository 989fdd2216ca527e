"""Samples: random access to what a loader would train on, without moving the loader."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from pge_lightning.distributed import gather
from pge_lightning.errors import PGEError
from pge_lightning.isolation import borrowed, derive_seed, isolated_randomness
from pge_lightning.probe import Probe

__all__ = ["SamplePool", "draw", "sample_pool"]


class SamplePool(ABC):
    """A fixed number of samples, read by index."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> Any:
        """The samples of these indices, collated as the loader collates them."""

    def part(self, indices: Sequence[int]) -> "SamplePool":
        """The pool of these samples alone."""
        return _Part(self, indices)

    def fingerprint(self) -> str:
        """A hash over the number of samples and the content of up to 256 of them, evenly spaced."""
        digest = hashlib.blake2b(str(len(self)).encode(), digest_size=8)
        with isolated_randomness(seed=0):
            batch = self.batch(np.linspace(0, len(self) - 1, min(len(self), 256)).astype(int).tolist())
        for leaf in tree_leaves(batch):
            value = leaf.detach().cpu().numpy() if isinstance(leaf, Tensor) else leaf
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else str(value).encode())
        return digest.hexdigest()


class _Part(SamplePool):
    def __init__(self, pool: SamplePool, indices: Sequence[int]) -> None:
        self.pool, self.indices = pool, indices

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> Any:
        return self.pool.batch([self.indices[i] for i in indices])


class _DatasetPool(SamplePool):
    """Reads a map-style data set in this process: what the loader's workers or samplers hold is never touched."""

    def __init__(self, loader: DataLoader[Any], indices: Sequence[int]) -> None:
        self.loader, self.indices = loader, indices

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> Any:
        dataset, collate = self.loader.dataset, self.loader.collate_fn
        chosen = [self.indices[i] for i in indices]
        while isinstance(dataset, Subset):
            dataset, chosen = dataset.dataset, [dataset.indices[i] for i in chosen]
        if isinstance(dataset, TensorDataset) and collate is default_collate:
            where = torch.as_tensor(chosen)
            return [tensor[where] for tensor in dataset.tensors]
        if hasattr(dataset, "__getitems__"):
            return collate(dataset.__getitems__(chosen))
        return collate([dataset[i] for i in chosen])


class _BatchPool(SamplePool):
    """Holds the samples of batches that came one after another."""

    def __init__(self, batches: Iterable[Any], most: int | None) -> None:
        parts: list[list[Tensor]] = []
        spec = None
        size = 0
        for batch in batches:
            leaves, spec = tree_flatten(batch)
            lengths = {leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves}
            if len(lengths) != 1 or None in lengths:
                raise PGEError(
                    "Expected batches of tensors that share their first dimension, but got "
                    f"{tree_map(lambda x: tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__, batch)}. "
                    "Give a DataLoader over a map-style data set instead, which may collate anything."
                )
            parts.append([leaf.detach() for leaf in leaves])
            size += parts[-1][0].shape[0]
            if most is not None and size >= most:
                break
        self.spec = spec
        self.leaves = [torch.cat(column) for column in zip(*parts, strict=True)]

    def __len__(self) -> int:
        return self.leaves[0].shape[0] if self.leaves else 0

    def batch(self, indices: Sequence[int]) -> Any:
        assert self.spec is not None  # noqa: S101 (an empty pool is refused before any batch is asked for)
        return self.spec.unflatten([leaf[torch.as_tensor(indices)] for leaf in self.leaves])


def _visited(loader: DataLoader[Any], limit: int | None) -> list[int]:
    """The indices that the loader may read, in ascending order; of a limited loader, those of its first batches.

    A plain batch sampler is looked through to its sampler, so that an incomplete last batch counts, too.
    """
    batches: Any = loader.batch_sampler
    length = len(batches) if hasattr(batches, "__len__") else None
    whole = limit is None or (length is not None and limit >= length)
    if type(batches) is BatchSampler and whole and length is not None:
        return sorted({int(index) for index in islice(iter(batches.sampler), len(loader.dataset))})  # type: ignore[arg-type]  # a sampler's length is its data set's
    most = length if whole else limit
    return sorted({int(index) for indices in islice(iter(batches), most) for index in indices})


def sample_pool(
    data: DataLoader[Any] | Iterable[Any], probe: Probe, limit: int | None = None, distributed: bool = False
) -> SamplePool:
    """Give random access to the samples that training would see.

    A loader over a map-style data set is not iterated: its sampler says which samples belong to it, and these are
    read from the data set in this process. Streams and other iterables are read once, up to the probe's largest rung.
    Samplers, generators, attributes of the data set and persistent workers are left as they were.

    Args:
        data: A ``DataLoader`` or any iterable of batches.
        probe: Tells how many samples are of use.
        limit: Most batches of the loader to consider, as the Trainer limits them.
        distributed: Whether all processes of the default group take part, each with its share of the samples.

    Returns:
        The pool.

    Raises:
        PGEError: If there are fewer samples than one batch of the probe, or batches cannot be taken apart.
    """
    with isolated_randomness(derive_seed(probe.seed, "pool")), borrowed(data):
        if isinstance(data, DataLoader) and data.batch_sampler is not None and not _streams(data.dataset):
            indices = _visited(data, limit)
            shares = gather(indices) if distributed else [indices]
            pool: SamplePool = _DatasetPool(data, sorted(set().union(*shares)))
        else:
            pool = _BatchPool(islice(iter(data), limit), max(probe.budgets, default=None))
    if len(pool) < probe.batch_size:
        raise PGEError(
            f"Expected at least one batch of {probe.batch_size} samples, but the training data holds {len(pool)}. "
            "Give more data, or collect sources and target with a smaller `batch_size` of the probe."
        )
    return pool


def _streams(dataset: Dataset[Any]) -> bool:
    return isinstance(dataset, IterableDataset)


def draw(samples: int, budget: int, probe: Probe, restart: int) -> list[list[int]]:
    """The batches of one restart: a fresh draw of the sample budget, gone through in freshly shuffled passes.

    A probe without a number of restarts makes a single pass: each restart takes the mini-batches that come next.

    Args:
        samples: Size of the pool.
        budget: Samples to draw.
        probe: Gives steps, batch size and seed.
        restart: Number of the restart.

    Returns:
        ``probe.steps`` lists of ``probe.batch_size`` indices.
    """
    size, needed = probe.batch_size, probe.steps * probe.batch_size
    if probe.restarts is None:
        order = torch.randperm(samples, generator=torch.Generator().manual_seed(derive_seed(probe.seed, "pass")))
        flat = order[restart * needed : (restart + 1) * needed]
    else:
        generator = torch.Generator().manual_seed(derive_seed(probe.seed, "draw", restart))
        chosen = torch.randperm(samples, generator=generator)[:budget]
        whole = budget // size * size
        passes = [torch.randperm(budget, generator=generator)[:whole] for _ in range(-(-needed // whole))]
        flat = chosen[torch.cat(passes)[:needed]]
    return [list(map(int, batch)) for batch in flat.split(size)]
