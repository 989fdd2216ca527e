"""Runs: one restart each, from its start through the warm-up into its row of the signature."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from pge_lightning.collect.fisher import add_fisher
from pge_lightning.collect.loss import StepMaker
from pge_lightning.collect.starts import Starts
from pge_lightning.collect.warmup import Updates, check_updates, place, warm_up
from pge_lightning.distributed import no_collectives
from pge_lightning.errors import PGEError
from pge_lightning.isolation import derive_seed, seed_all
from pge_lightning.isolation.memory import release
from pge_lightning.samples.pool import SamplePool

__all__ = ["Runs"]

_SMALL = 2**24  # bytes of a row up to which it is filled before the warm-up: a second start would cost more


@dataclass(frozen=True)
class Runs:
    """What a copy of the module needs to take steps.

    Args:
        starts: Makes the copies.
        step: Makes the training step of a copy.
        device: Where the warm-up runs.
        datamodule: Its transfer hooks take part where it overrides them.
        prepare: Called with every copy before it is used.
        check: Called before every step; what it raises ends the run.
    """

    starts: Starts
    step: StepMaker
    device: torch.device
    datamodule: pl.LightningDataModule | None = None
    prepare: Callable[[nn.Module], None] | None = None
    check: Callable[[], None] | None = None

    def run(self, k: int, pool: SamplePool, data: str, budget: int, row: Updates) -> dict[str, str]:
        """Run one restart. At no time is there more than one copy, its gradients and the state of its optimizer.

        Args:
            k: Number of the restart.
            pool: Where its samples are drawn from.
            data: Fingerprint of the data set.
            budget: Samples to draw.
            row: Unit to ``[*shape]``; the sum of the unit's updates is added in place.

        Returns:
            Unit to the hash of its start, if restarts are paired.

        Raises:
            PGEError: If the loss or the start is of no use.
        """
        probe = self.starts.probe
        clone = self.starts.make(k, data)
        hashes = self.starts.hashes(clone) if probe.paired else {}
        # The first start is always made twice, to see whether it can be; those of larger modules for the memory, too.
        again = k == 0 or sum(update.nbytes for update in row.values()) > _SMALL
        if probe.walks and not again:
            self._add_start(clone, row)
        if self.prepare is not None:
            self.prepare(clone)
        seed_all(derive_seed(probe.seed, "noise", k))
        clone = clone.to(self.device)
        drawn = pool.draw(budget, probe, k)

        def batches() -> Iterator[Any]:
            return (self._batch(clone, pool, indices) for indices in drawn)

        if probe.statistic == "fisher":
            add_fisher(clone, row, batches, self.step(clone), probe)
        else:
            warm_up(clone, row, batches(), self.step(clone), probe)
        release(clone)
        if probe.walks and again:
            self._add_start_again(k, data, row, hashes)
        check_updates(row)
        return hashes

    def once(self, pool: SamplePool, clone: nn.Module) -> None:
        """Take one step with a copy, to see what shapes its lazy parameters get.

        Args:
            pool: Where its batch comes from.
            clone: The copy.
        """
        if self.prepare is not None:
            self.prepare(clone)
        clone = clone.to(self.device)
        with torch.inference_mode(mode=False), torch.enable_grad(), no_collectives():
            self.step(clone)(self._batch(clone, pool, list(range(self.starts.probe.batch_size))), 0)

    def _batch(self, clone: nn.Module, pool: SamplePool, indices: list[int]) -> Any:
        """The batch of one step, on the device."""
        if self.check is not None:
            self.check()
        return place(clone, pool.batch(indices), self.device, self.datamodule)

    def _add_start(self, start: nn.Module, row: Updates) -> None:
        for name, value in self.starts.values(start).items():
            row[name].add_(value)

    def _add_start_again(self, k: int, data: str, row: Updates, hashes: dict[str, str]) -> None:
        """Make the start again, which was not kept while the warm-up needed the memory."""
        start = self.starts.make(k, data)
        if hashes and (others := self.starts.hashes(start)) != hashes:
            name = next(name for name in hashes if others[name] != hashes[name])
            raise PGEError(
                f"Expected a start that can be made again from its seed, but '{name}' came out different. Draw it with "
                "the random numbers of PyTorch, NumPy or Python, or give a `factory` that does."
            )
        self._add_start(start, row)
        release(start)
