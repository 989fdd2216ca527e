"""Collector: all that one data set's signatures need, checked before any work starts."""

import copy
import hashlib
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader

from pge_lightning.collect.loss import LossFn, loss_code, make_step
from pge_lightning.collect.pretext import Pretext, unlabelled_batches
from pge_lightning.collect.runs import Runs
from pge_lightning.collect.starts import Starts
from pge_lightning.collect.warmup import Updates
from pge_lightning.distributed import add_up, agree, everywhere, rank_and_world
from pge_lightning.encoder import EncoderSpec
from pge_lightning.encoder_features import FeaturesFn, inputs_of
from pge_lightning.errors import PGEError
from pge_lightning.isolation import borrowed, isolated_randomness, plain
from pge_lightning.probe import Probe
from pge_lightning.restart import Factory
from pge_lightning.samples import sample_pool
from pge_lightning.samples.pool import SamplePool
from pge_lightning.sharding import check_whole
from pge_lightning.signature import Signature

__all__ = ["Collector"]


class Collector:
    """Everything one data set's signatures need, checked before any work starts.

    Args:
        module: The user's module; only copies of it are touched.
        batches: A ``DataLoader``, any iterable of batches, or several of them as Lightning combines them.
        probe: The recipe, or the name of a shipped one.
        loss_fn: Takes a copy of the module and a batch and returns a scalar loss; by default the LightningModule's own
            ``training_step`` gives it. A label-free probe has a loss of its own.
        encoder: Names the transferred part: submodule, pattern over parameter names, or callable.
        features: For a label-free probe: takes a copy of the module and a batch and returns features ``[batch, d]``; by
            default those that leave the encoder.
        factory: Builds a fresh module of the same kind, where re-initialisation needs help.
        device: Where the warm-up runs; by default where the module is.
        datamodule: Its transfer hooks take part where it overrides them. A label-free probe takes the batches of its
            ``unlabelled_dataloader()`` instead, where it has one.
        prepare: Called with every copy before it is used.
        limit: Most batches of the loader to consider.
        distributed: Whether all processes of the default group take part, each with its share of samples and restarts.
        progress: Whether to show a bar over the restarts.
        check: Called before every step of a warm-up; what it raises ends the collection.
        thaw: Whether frozen parameters of the encoder count as trainable, for a module that is thawed while it trains.

    Raises:
        PGEError: If there is no loss, no encoder, a unit that nothing re-initialises, or too few samples.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: DataLoader[Any] | Iterable[Any],
        *,
        probe: Probe | str = "default",
        loss_fn: LossFn | None = None,
        encoder: EncoderSpec = None,
        features: FeaturesFn | None = None,
        factory: Factory | None = None,
        device: torch.device | str | None = None,
        datamodule: pl.LightningDataModule | None = None,
        prepare: Callable[[nn.Module], None] | None = None,
        limit: int | None = None,
        distributed: bool = False,
        progress: bool = False,
        check: Callable[[], None] | None = None,
        thaw: bool = False,
    ) -> None:
        self.module, self.probe, self.distributed, self.progress = plain(module), Probe.of(probe), distributed, progress
        self.batches: Any = batches
        self.limit = limit
        self.pretext = Pretext(self.probe.pretext, encoder, features) if self.probe.pretext else None

        def checked() -> Runs:
            check_whole(self.module)
            pretext = self.pretext
            if pretext is not None:
                self.batches, self.limit = unlabelled_batches(batches, limit, datamodule)
            self.loss = loss_code(self.module, (features or Pretext.step) if pretext else loss_fn)
            step = pretext.step if pretext else make_step(module, loss_fn)
            starts = Starts(self.module, self.probe, encoder, thaw)
            if not starts.lazy:
                starts.check(factory)
            place = torch.device(device) if device is not None else next(self.module.parameters()).device
            torch.empty(0, device=place)  # wakes the device, so that its random state is put back, too
            return Runs(starts, step, place, datamodule, prepare, check)

        self.runs = agree(checked, distributed)
        self.starts = self.runs.starts
        self.pool: SamplePool = sample_pool(self.batches, self.probe, self.limit, distributed)
        self.data = self._fingerprint()
        agree(partial(self._learn_shapes, factory), distributed)

    def _learn_shapes(self, factory: Factory | None) -> None:
        """Take what a batch must show: shapes of lazy parameters, and that of the pretext's head."""
        with isolated_randomness(), borrowed(self.batches):
            if self.starts.lazy:
                self.starts.check(factory, partial(self.runs.once, self.pool))
            if self.pretext is not None:
                self.runs.once(self.pool, self.starts.make(0, self.data))
                self.starts.finish = self.pretext.add_head

    @property
    def units(self) -> list[str]:
        """Names of the encoder's trainable parameters."""
        return self.starts.units

    @property
    def budgets(self) -> list[int]:
        """The rungs of the ladder that the samples can fill; without a ladder, all samples.

        Returns:
            Sample budgets in ascending order, at least one.

        Raises:
            PGEError: If the samples fill no rung.
        """
        rungs = [budget for budget in self.probe.budgets if budget <= len(self.pool)]
        if self.probe.budgets and not rungs:
            raise PGEError(
                f"Expected at least {self.probe.budgets[0]} samples for the smallest rung of probe "
                f"'{self.probe.name}', but got {len(self.pool)}. Add a smaller rung to `budgets`, for the sources too."
            )
        return rungs or [len(self.pool)]

    def part(self, indices: list[int]) -> "Collector":
        """The same collection from some of the samples only.

        Args:
            indices: Numbers of samples in this collection's pool.

        Returns:
            A collector that shares everything but the samples.
        """
        other = copy.copy(self)
        other.pool = self.pool.part(indices)
        other.data = other._fingerprint()
        return other

    def collect(self, budget: int) -> Signature:
        """Run all restarts at one sample budget.

        Args:
            budget: Samples drawn afresh by every restart, at most as many as there are.

        Returns:
            The signature.

        Raises:
            PGEError: If a loss or an update is not finite, or the restarts do not differ; on every process, if one
                fails.
        """
        begin = time.perf_counter()
        probe = self.probe
        needed = probe.steps * probe.batch_size
        restarts = probe.restarts if probe.restarts is not None else max(1, len(self.pool) // needed)
        with isolated_randomness(), borrowed(self.batches), torch.inference_mode(mode=False), torch.enable_grad():
            stacks, starts = self._collect(restarts, budget)
        seconds, frozen = time.perf_counter() - begin, self.starts.frozen
        return Signature(stacks, starts, probe, budget, restarts, self.data, len(self.pool), seconds, frozen)

    @property
    def task(self) -> str:
        """A hash of what the loss asks of the samples: the module's make-up and its loss."""
        return hashlib.blake2b(repr((repr(self.module), self.loss)).encode(), digest_size=8).hexdigest()

    def fits(self, signature: Signature, budget: int) -> bool:
        """Whether a stored signature is the one that :meth:`collect` would make, up to the machine's arithmetic.

        Args:
            signature: The stored one.
            budget: The sample budget that is wanted.

        Returns:
            Whether recipe, budget, data, units, starts and frozen values are the same.
        """
        with isolated_randomness():
            numbers = range(signature.restarts if self.probe.paired else 0)
            starts = self.starts.per_unit([self.starts.hashes_of(k, self.data) for k in numbers])
        shapes, frozen = self.starts.shapes, self.starts.frozen
        expected = (self.probe.recipe, budget, self.data, len(self.pool), shapes, starts, frozen)
        return expected == (
            signature.probe.recipe,
            signature.budget,
            signature.data,
            signature.samples,
            signature.fingerprint["shapes"],
            dict(signature.starts),
            dict(signature.frozen),
        )

    def _fingerprint(self) -> str:
        with borrowed(self.batches):
            seen = partial(self.pool.fingerprint, inputs_of) if self.pretext else self.pool.fingerprint
            return everywhere(seen, self.distributed)[0]

    def _collect(self, restarts: int, budget: int) -> tuple[Updates, dict[str, tuple[str, ...]]]:
        """Unit to its principal gradients and to the hashes of its starts; processes share the restarts out."""
        probe = self.probe
        rank, world = rank_and_world() if self.distributed else (0, 1)
        shapes = {name: (restarts if probe.paired else 1, *shape) for name, shape in self.starts.shapes.items()}
        # NumPy's zeros take memory when a row is written, not before.
        stacks = {name: torch.from_numpy(np.zeros(shape, dtype=np.float32)) for name, shape in shapes.items()}
        run = partial(self._run_all, range(rank, restarts, world), budget, stacks)
        hashes = {k: hashed for share in everywhere(run, self.distributed) for k, hashed in share.items()}
        starts = self.starts.per_unit([hashes[k] for k in sorted(hashes) if probe.paired])
        if restarts > 1 and starts and all(len(set(each)) == 1 for each in starts.values()):
            raise PGEError(
                "Expected restarts to differ, but the re-initialised encoder is the same in all of them: it is set, "
                "not drawn. Give a `factory` that draws it."
            )
        if self.distributed:
            add_up(stacks.values())
        scale = probe.steps * (probe.lr if probe.walks else 1) * (1 if probe.paired else restarts)
        for stack in stacks.values():
            stack.div_(scale)
        return stacks, starts

    def _run_all(self, numbers: range, budget: int, stacks: Updates) -> dict[int, dict[str, str]]:
        """Run some restarts, each into its row; unpaired ones are summed up in one row."""
        text = f"Probe '{self.probe.name}', {budget} samples"
        hashes = {}
        for k in track(numbers, text, transient=True, disable=not self.progress):
            row = {name: stack[k if self.probe.paired else 0] for name, stack in stacks.items()}
            try:
                hashes[k] = self.runs.run(k, self.pool, self.data, budget, row)
            except PGEError as error:
                raise PGEError(f"In restart {k}: {error}") from error
        return hashes
