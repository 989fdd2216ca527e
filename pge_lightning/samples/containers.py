"""Containers: several loaders side by side or one after another, as Lightning combines them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from typing import Any

from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_flatten, tree_leaves
from torch.utils.data import DataLoader

from pge_lightning.errors import PGEError
from pge_lightning.isolation import derive_seed
from pge_lightning.probe import Probe
from pge_lightning.samples.content import content_hash
from pge_lightning.samples.pool import SamplePool, draw

__all__ = ["combination", "combine", "limits_of"]


def combination(data: Any) -> CombinedLoader | None:
    """What holds several loaders, as Lightning would combine them; ``None`` for anything else.

    Args:
        data: A ``CombinedLoader``; or a dictionary, or a list or tuple with a ``DataLoader`` in it: these are gone
            through as a Trainer does, until the longest has ended.

    Returns:
        The combined loader.
    """
    if isinstance(data, CombinedLoader):
        return data
    listed = isinstance(data, (list, tuple)) and any(isinstance(leaf, DataLoader) for leaf in tree_leaves(data))
    return CombinedLoader(data, "max_size_cycle") if listed or isinstance(data, dict) else None


def limits_of(combined: CombinedLoader, limit: int | None) -> list[int | None]:
    """Most batches to consider of each loader, as the Trainer limits them."""
    own = combined.limits or [float("inf")] * len(combined.flattened)
    lowest = [min(most, float("inf") if limit is None else limit) for most in own]
    return [None if most == float("inf") else int(most) for most in lowest]


def combine(combined: CombinedLoader, pools: Sequence[SamplePool]) -> SamplePool:
    """One pool for several loaders.

    Side by side, a sample of the combination is one sample of each loader, and a batch holds the probe's number of
    samples from each, collated by that loader, in the structure of the container. There are as many as the longest
    loader has samples; shorter ones start again (``max_size_cycle``) or are missing from there on (``max_size``, with
    ``None`` where a batch has none of a loader's). Or there are as many as the shortest has, and longer ones give
    evenly spaced ones of theirs (``min_size``). One after another (``sequential``), the samples of all loaders count,
    and each batch comes from one of them.

    Args:
        combined: Gives structure and mode.
        pools: The samples of each loader.

    Returns:
        The pool.

    Raises:
        PGEError: If a loader has no samples.
    """
    if empty := [number for number, pool in enumerate(pools) if not len(pool)]:
        raise PGEError(f"Expected samples in each of {len(pools)} training loaders, but number {empty[0]} has none.")
    mode = getattr(combined, "_mode", "max_size_cycle")  # no public name tells it
    if mode == "sequential":
        return _OneByOne(pools)
    _, spec = tree_flatten(combined.iterables, is_leaf=lambda part: any(part is leaf for leaf in combined.flattened))
    return _SideBySide(pools, mode, spec.unflatten)


class _SideBySide(SamplePool):
    def __init__(self, pools: Sequence[SamplePool], mode: str, build: Callable[[list[Any]], Any]) -> None:
        self.pools, self.mode, self.build = pools, mode, build

    def __len__(self) -> int:
        return (min if self.mode == "min_size" else max)(len(pool) for pool in self.pools)

    def batch(self, indices: Sequence[int]) -> Any:
        return self.build([self._share(pool, indices) for pool in self.pools])

    def _share(self, pool: SamplePool, indices: Sequence[int]) -> Any:
        """One loader's part of a batch."""
        size = len(pool)
        if self.mode == "min_size":
            # Evenly spaced: data sets are often sorted by class.
            return pool.batch([i * size // len(self) for i in indices])
        if self.mode == "max_size":
            there = [i for i in indices if i < size]
            return pool.batch(there) if there else None
        return pool.batch([i % size for i in indices])

    def fingerprint(self, part: Callable[[Any], Any] = lambda batch: batch) -> str:
        return content_hash([self.mode, self.build([pool.fingerprint(part) for pool in self.pools])])


class _OneByOne(SamplePool):
    def __init__(self, pools: Sequence[SamplePool]) -> None:
        self.pools = pools
        self.ends = list(accumulate(len(pool) for pool in pools))

    def __len__(self) -> int:
        return self.ends[-1]

    def batch(self, indices: Sequence[int]) -> Any:
        """Samples of one loader: they must not be of several."""
        number = self._owner(indices[0])
        return self.pools[number].batch([i - self._begin(number) for i in indices])

    def part(self, indices: Sequence[int]) -> SamplePool:
        """These samples alone, loader by loader."""
        groups: dict[int, list[int]] = {}
        for i in indices:
            number = self._owner(i)
            groups.setdefault(number, []).append(i - self._begin(number))
        return _OneByOne([self.pools[number].part(groups[number]) for number in sorted(groups)])

    def draw(self, budget: int, probe: Probe, restart: int) -> list[list[int]]:
        """Each loader gives its share of the budget; they take turns, in proportion to these shares."""
        # What normalises over a batch needs two samples.
        shares = [min(len(pool), max(2, budget * len(pool) // len(self))) for pool in self.pools]
        batches = [self._draw(number, share, probe, restart) for number, share in enumerate(shares)]
        begin = 0 if probe.restarts is not None else restart * probe.steps
        return list(islice(_in_turns(batches, shares), begin, begin + probe.steps))

    def _draw(self, number: int, share: int, probe: Probe, restart: int) -> list[list[int]]:
        """All batches that one loader can give."""
        seed = derive_seed(probe.seed, "loader", number)
        steps = probe.steps if probe.restarts is not None else -(-share // probe.batch_size)
        own = replace(probe, batch_size=min(probe.batch_size, share), steps=steps, seed=seed, budgets=())
        chosen = draw(len(self.pools[number]), share, own, restart if probe.restarts is not None else 0)
        return [[i + self._begin(number) for i in batch] for batch in chosen]

    def _owner(self, i: int) -> int:
        return next(number for number, end in enumerate(self.ends) if i < end)

    def _begin(self, number: int) -> int:
        return self.ends[number] - len(self.pools[number])

    def fingerprint(self, part: Callable[[Any], Any] = lambda batch: batch) -> str:
        return content_hash(["sequential", [pool.fingerprint(part) for pool in self.pools]])


def _in_turns(batches: list[list[list[int]]], shares: Sequence[int]) -> Iterator[list[int]]:
    """All batches, always of the loader that is furthest behind its share."""
    given = [0] * len(batches)
    while left := [number for number, own in enumerate(batches) if given[number] < len(own)]:
        number = min(left, key=lambda number: (given[number] + 1) / shares[number])
        yield batches[number][given[number]]
        given[number] += 1
