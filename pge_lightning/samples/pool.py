"""Pool: a fixed number of samples, and the batches that a restart draws from them."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pge_lightning.isolation import derive_seed, isolated_randomness
from pge_lightning.probe import Probe
from pge_lightning.samples.content import content_hash

__all__ = ["SamplePool", "collated", "draw"]

# Their collate functions make new batches and leave the samples alone.
_CAREFUL = ("torch.", "torch_geometric.")


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

    def draw(self, budget: int, probe: Probe, restart: int) -> list[list[int]]:
        """The indices of one restart's batches, as :func:`draw` chooses them."""
        return draw(len(self), budget, probe, restart)

    def fingerprint(self, part: Callable[[Any], Any] = lambda batch: batch) -> str:
        """A hash over the number of samples and the content of up to 256 of them, evenly spaced.

        Args:
            part: Says what of a batch counts; by default all.

        Returns:
            The hash.
        """
        with isolated_randomness(seed=0):
            batch = self.batch(np.linspace(0, len(self) - 1, min(len(self), 256)).astype(int).tolist())
            return content_hash((len(self), part(batch)))


class _Part(SamplePool):
    def __init__(self, pool: SamplePool, indices: Sequence[int]) -> None:
        self.pool, self.indices = pool, indices

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Sequence[int]) -> Any:
        return self.pool.batch([self.indices[i] for i in indices])


def collated(samples: list[Any], collate: Callable[[list[Any]], Any]) -> Any:
    """Collate samples that will be read again.

    Args:
        samples: Samples of any kind.
        collate: The loader's function; one of the user's may change samples or hand them on to a step that does, and
            is given copies.

    Returns:
        The batch.
    """
    if str(getattr(collate, "__module__", "")).startswith(_CAREFUL):
        return collate(samples)
    return collate([_copied(sample) for sample in samples])


def _copied(sample: Any) -> Any:
    try:
        return copy.deepcopy(sample)
    except (TypeError, RuntimeError):  # an open file, or a tensor with a history
        return sample


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
