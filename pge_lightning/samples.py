"""Samples: random access to what a loader would train on, without moving the loader."""

import hashlib
import io
import pickle  # ruff: ignore[suspicious-pickle-import] (written for its hash, never read)
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_structure
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, default_collate

from pge_lightning.distributed import everywhere
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
        with isolated_randomness(seed=0):
            batch = self.batch(np.linspace(0, len(self) - 1, min(len(self), 256)).astype(int).tolist())
        content = io.BytesIO()
        _ContentPickler(content).dump((len(self), batch))
        return hashlib.blake2b(content.getvalue(), digest_size=8).hexdigest()


class _ContentPickler(pickle.Pickler):
    """Writes batches of any type, as workers could send them, with the values of tensors and not their addresses."""

    def persistent_id(self, value: Any) -> bytes | None:
        if not isinstance(value, Tensor):
            return None
        return value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()


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
        dataset: Any = self.loader.dataset
        collate = self.loader.collate_fn
        chosen = [self.indices[i] for i in indices]
        while type(dataset) is Subset:
            dataset, chosen = dataset.dataset, [dataset.indices[i] for i in chosen]
        if type(dataset) is TensorDataset and collate is default_collate:
            where = torch.as_tensor(chosen)
            return [tensor[where] for tensor in dataset.tensors]
        if callable(together := getattr(dataset, "__getitems__", None)):
            return collate(together(chosen))
        return collate([dataset[i] for i in chosen])


class _BatchPool(SamplePool):
    """Holds the samples of batches that came one after another."""

    def __init__(self) -> None:
        self.leaves: list[Tensor] = []
        self.spec = tree_structure(())

    def read(self, batches: Iterable[Any], most: int | None) -> int:
        """Take batches until there are enough samples.

        Args:
            batches: Batches whose leaves are tensors.
            most: How many samples are enough; ``None`` takes all.

        Returns:
            The number of samples.

        Raises:
            PGEError: If the batches cannot be taken apart and put together again.
        """
        parts: list[list[Tensor]] = []
        layout = None
        size = 0
        for batch in batches:
            leaves, spec = tree_flatten(batch)
            lengths = {leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves}
            if len(lengths) != 1 or None in lengths:
                raise PGEError(_unfit(batch))
            rest = spec, [leaf.shape[1:] for leaf in leaves]
            if parts and rest != layout:
                raise PGEError(_unfit(batch, self.spec.unflatten(parts[0])))
            layout = rest
            parts.append([leaf.detach() for leaf in leaves])
            self.spec = spec
            size += leaves[0].shape[0]
            if most is not None and size >= most:
                break
        self.leaves = [torch.cat(column) for column in zip(*parts, strict=True)]
        return len(self)

    def __len__(self) -> int:
        return self.leaves[0].shape[0] if self.leaves else 0

    def batch(self, indices: Sequence[int]) -> Any:
        return self.spec.unflatten([leaf[torch.as_tensor(indices)] for leaf in self.leaves])


def _unfit(batch: Any, first: Any = None) -> str:
    """What to say of a batch that cannot be taken apart, or that differs from the first one."""

    def shapes(tree: Any) -> str:
        return str(tree_map(lambda x: tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__, tree))

    after = "" if first is None else f" after {shapes(first)}"
    return (
        "Expected batches of tensors that share their first dimension, and agree in all others from batch to batch, "
        f"but got {shapes(batch)}{after}. Pad them to one size, or give a DataLoader over a map-style data set "
        "instead, which may collate anything."
    )


def _length(sized: Any) -> int | None:
    """The length, where there is one: samplers may be endless."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def _visited(loader: DataLoader[Any], limit: int | None) -> list[int]:
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
    size, length = _length(loader.dataset), _length(batches)
    whole = limit is None or (length is not None and limit >= length)
    if type(batches) is BatchSampler and whole:
        return sorted({int(index) for index in islice(iter(batches.sampler), size)})
    read = chain.from_iterable(islice(iter(batches), limit))
    return sorted({int(index) for index in (islice(read, size) if whole and length is None else read)})


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
    pool: SamplePool
    with isolated_randomness(derive_seed(probe.seed, "pool")), borrowed(data):
        if isinstance(data, DataLoader) and data.batch_sampler is not None and not _streams(data.dataset):
            shares = everywhere(lambda: _visited(data, limit), distributed)
            pool = _DatasetPool(data, sorted(set().union(*shares)))
        else:
            pool = stream = _BatchPool()
            most = max(probe.budgets, default=None)
            sizes = everywhere(lambda: stream.read(islice(iter(data), limit), most), distributed)
            pool = stream.part(range(min(sizes)))
    if len(pool) < probe.batch_size:
        raise PGEError(
            f"Expected at least one batch of {probe.batch_size} samples, but the training data holds {len(pool)}. "
            "Give more data, or collect sources and target with a smaller `batch_size` of the probe."
        )
    return pool


def _streams(dataset: Dataset[Any]) -> bool:
    return isinstance(dataset, IterableDataset)


def draw(samples: int, budget: int, probe: Probe, restart: int) -> list[list[int]]:
    """Choose the batches of one restart: a fresh draw of the sample budget, gone through in freshly shuffled passes.

    A probe without a number of restarts makes a single pass: each restart takes the mini-batches that come next.

    Args:
        samples: Size of the pool.
        budget: Samples to draw.
        probe: Gives steps, batch size and seed.
        restart: Number of the restart.

    Returns:
        ``probe.steps`` lists of ``probe.batch_size`` indices; fewer at the end of a single pass.
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
    return [flat[at : at + size].tolist() for at in range(0, len(flat), size)]
