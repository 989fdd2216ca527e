"""Collect: restart, warm up on an isolated copy, keep the mean update direction, throw the copy away."""

import copy
import hashlib
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader

from pge_lightning.clone import isolated_copy
from pge_lightning.distributed import agree, everywhere, rank_and_world
from pge_lightning.encoder import EncoderSpec, encoder_state, encoder_units
from pge_lightning.errors import PGEError
from pge_lightning.isolation import borrowed, derive_seed, isolated_randomness, seed_all
from pge_lightning.loss import LossFn, loss_code, make_step
from pge_lightning.pool import SamplePool
from pge_lightning.probe import Probe
from pge_lightning.restart import Factory, hash_start, make_initialiser, restart
from pge_lightning.samples import sample_pool
from pge_lightning.sharding import check_whole
from pge_lightning.signature import Signature
from pge_lightning.warmup import Updates, place, warm_up

__all__ = ["Collector", "collect_signature"]


class Collector:
    """Everything one data set's signatures need, checked before any work starts.

    Args:
        module: The user's module; only copies of it are touched.
        batches: A ``DataLoader``, any iterable of batches, or several of them as Lightning combines them.
        probe: The recipe, or the name of a shipped one.
        loss_fn: Takes a copy of the module and a batch and returns a scalar loss; by default the LightningModule's own
            ``training_step`` gives it.
        encoder: Names the transferred part: submodule, pattern over parameter names, or callable.
        factory: Builds a fresh module of the same kind, where re-initialisation needs help.
        device: Where the warm-up runs; by default where the module is.
        datamodule: Its transfer hooks take part where it overrides them.
        prepare: Called with every copy before it is used.
        limit: Most batches of the loader to consider.
        distributed: Whether all processes of the default group take part, each with its share of samples and restarts.
        progress: Whether to show a bar over the restarts.
        check: Called before every step of a warm-up; what it raises ends the collection.

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
        factory: Factory | None = None,
        device: torch.device | str | None = None,
        datamodule: pl.LightningDataModule | None = None,
        prepare: Callable[[nn.Module], None] | None = None,
        limit: int | None = None,
        distributed: bool = False,
        progress: bool = False,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.module, self.batches, self.probe = module, batches, Probe.of(probe)
        self.datamodule, self.prepare = datamodule, prepare
        self.distributed, self.progress, self.check = distributed, progress, check
        agree(partial(self._check_module, loss_fn, encoder, factory, device), distributed)
        self.pool: SamplePool = sample_pool(batches, self.probe, limit, distributed)
        self.data = self._fingerprint()

    def _check_module(
        self,
        loss_fn: LossFn | None,
        encoder: EncoderSpec,
        factory: Factory | None,
        device: torch.device | str | None,
    ) -> None:
        module = self.module
        check_whole(module)
        self.step = make_step(module, loss_fn)
        self.loss = loss_code(module, loss_fn)
        self.units = encoder_units(module, encoder)
        parameters = dict(module.named_parameters())
        self.shared = [name for name in encoder_state(module, encoder) if name in parameters]
        self.initialise = make_initialiser(module, factory, self.shared)
        with isolated_randomness():
            restart(isolated_copy(module), self.shared, self.initialise, seed=0, head_seed=0)
        self.device = torch.device(device) if device is not None else next(module.parameters()).device
        torch.empty(0, device=self.device)  # wakes the device, so that its random state is put back, too

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
        rank, world = rank_and_world() if self.distributed else (0, 1)
        with isolated_randomness(), borrowed(self.batches), torch.inference_mode(mode=False), torch.enable_grad():
            shares = everywhere(lambda: self._run_all(range(rank, restarts, world), budget), self.distributed)
        results = dict(sorted((k, result) for share in shares for k, result in share.items()))
        units, starts = self._stack(list(results.values()), restarts)
        seconds = time.perf_counter() - begin
        return Signature(units, starts, probe, budget, restarts, self.data, len(self.pool), seconds)

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
            Whether recipe, budget, data, units and starts are the same.
        """
        with isolated_randomness():
            hashes = [hash_start(self._start(k)[1]) for k in range(signature.restarts if self.probe.paired else 0)]
        starts = {name: tuple(hashed[name] for hashed in hashes) for name in self.units} if hashes else {}
        parameters = dict(self.module.named_parameters())
        shapes = {name: list(parameters[name].shape) for name in self.units}
        expected = (self.probe.recipe, budget, self.data, len(self.pool), shapes, starts)
        return expected == (
            signature.probe.recipe,
            signature.budget,
            signature.data,
            signature.samples,
            signature.fingerprint["shapes"],
            dict(signature.starts),
        )

    def _fingerprint(self) -> str:
        with borrowed(self.batches):
            return everywhere(self.pool.fingerprint, self.distributed)[0]

    def _run_all(self, numbers: range, budget: int) -> dict[int, tuple[Updates, dict[str, str]]]:
        """The results of some restarts; unpaired ones are summed up in the first."""
        kept: dict[int, tuple[Updates, dict[str, str]]] = {}
        text = f"Probe '{self.probe.name}', {budget} samples"
        for k in track(numbers, text, transient=True, disable=not self.progress):
            updates, hashes = self._run(k, budget)
            if self.probe.paired or not kept:
                kept[k] = updates, hashes
            else:
                for name, total in kept[numbers[0]][0].items():
                    total += updates[name]
        return kept

    def _run(self, k: int, budget: int) -> tuple[Updates, dict[str, str]]:
        """One restart: its mean update per unit, and the hashes of its start."""
        probe = self.probe
        clone, start = self._start(k)
        hashes = hash_start(start) if probe.paired else {}
        if self.prepare is not None:
            self.prepare(clone)
        seed_all(derive_seed(probe.seed, "noise", k))
        clone = clone.to(self.device)
        chosen = self.pool.draw(budget, probe, k)
        batches = (self._batch(clone, indices) for indices in chosen)
        try:
            return warm_up(clone, self.units, batches, self.step(clone), probe), hashes
        except PGEError as error:
            raise PGEError(f"In restart {k}: {error}") from error

    def _batch(self, clone: nn.Module, indices: list[int]) -> Any:
        """The batch of one step, on the device."""
        if self.check is not None:
            self.check()
        return place(clone, self.pool.batch(indices), self.device, self.datamodule)

    def _start(self, k: int) -> tuple[nn.Module, Updates]:
        """A re-initialised copy, and its encoder's initial values. Only a paired encoder is equal for all data sets."""
        clone, seed = isolated_copy(self.module), self.probe.seed
        head_seed = derive_seed(seed, "head", k, self.data)
        encoder_seed = derive_seed(seed, "encoder", k) if self.probe.paired else derive_seed(head_seed, "encoder")
        start = restart(clone, self.shared, self.initialise, encoder_seed, head_seed)
        return clone, {name: start[name] for name in self.units}

    def _stack(
        self, results: list[tuple[Updates, dict[str, str]]], restarts: int
    ) -> tuple[Updates, dict[str, tuple[str, ...]]]:
        """Bring the restarts together per unit: side by side if they are paired, as their mean if not."""
        units = {name: torch.stack([updates[name] for updates, _ in results]) for name in self.units}
        if not self.probe.paired:
            return {name: stack.sum(0, keepdim=True) / restarts for name, stack in units.items()}, {}
        starts = {name: tuple(hashes[name] for _, hashes in results) for name in self.units}
        if restarts > 1 and all(len(set(hashes)) == 1 for hashes in starts.values()):
            raise PGEError(
                "Expected restarts to differ, but the re-initialised encoder is the same in all of them. Its "
                "constructor probably loads trained weights: give a `factory` that draws them."
            )
        return units, starts


def collect_signature(
    module: nn.Module,
    batches: DataLoader[Any] | Iterable[Any],
    *,
    loss_fn: LossFn | None = None,
    probe: Probe | str = "default",
    budget: int | None = None,
    encoder: EncoderSpec = None,
    factory: Factory | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Signature:
    """Collect the principal gradients of one data set, in plain PyTorch.

    Neither the module nor the loader, its samplers or the global random state are changed.

    Args:
        module: Any module; a LightningModule brings its own loss.
        batches: A ``DataLoader``, any iterable of batches, or several of them as Lightning combines them.
        loss_fn: Takes a copy of the module and a batch and returns a scalar loss.
        probe: The recipe, or the name of a shipped one.
        budget: Sample budget; by default the largest rung of the probe's ladder that the samples fill.
        encoder: Names the transferred part: submodule, pattern over parameter names, or callable.
        factory: Builds a fresh module of the same kind, where re-initialisation needs help.
        device: Where the warm-up runs; by default where the module is.
        progress: Whether to show a bar over the restarts.

    Returns:
        The signature: per unit ``[restarts, *shape]``.

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
    """
    collector = Collector(
        module,
        batches,
        probe=probe,
        loss_fn=loss_fn,
        encoder=encoder,
        factory=factory,
        device=device,
        progress=progress,
    )
    if budget is not None and not collector.probe.batch_size <= budget <= len(collector.pool):
        raise ValueError(
            f"Expected `budget` between a batch of {collector.probe.batch_size} and the {len(collector.pool)} samples "
            f"there are, but got {budget}."
        )
    return collector.collect(collector.budgets[-1] if budget is None else budget)
