"""Track: the samples of a race, split into those to train on and those to judge by, and the racers it starts."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pge_lightning.collect.loss import StepMaker
from pge_lightning.collect.starts import Starts
from pge_lightning.collect.warmup import place
from pge_lightning.errors import PGEError
from pge_lightning.isolation import derive_seed, isolated_copy, seed_all
from pge_lightning.load import load_encoder
from pge_lightning.race.racer import Racer, evaluating
from pge_lightning.samples.pool import SamplePool

__all__ = ["Course", "RacePlan", "Track", "Weights"]

Weights: TypeAlias = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class RacePlan:
    """How much a race may cost, and how it is judged.

    Args:
        steps: Optimizer steps of all candidates on all splits together.
        splits: How often the target's samples are split anew; each candidate runs on every split. Two at least; more
            make the answer surer, because starts from scratch differ, and take memory for more copies.
        scratch: What sources are compared with: ``"restart"``, every split with another re-initialised start of encoder
            and head, or ``"given"``, the model as it is, for one that comes with trained weights.
        halve: Whether the worse half of the sources drops out after each rung; otherwise all run to the end.
        holdout: Fraction of the samples that a split keeps for judging, in (0, 0.5].
        batch_size: Samples per step; by default the loader's, or 32 where it has none.
        samples: Most target samples to read where the data is a stream.
        lr: Rate of AdamW, which takes the place of the module's own optimizer where that cannot be had.
        seed: Stands for splits, order of batches and noise, the same for every candidate.

    Raises:
        ValueError: If a field is out of its range.
    """

    steps: int = 3200
    splits: int = 8
    scratch: Literal["restart", "given"] = "restart"
    halve: bool = True
    holdout: float = 0.25
    batch_size: int | None = None
    samples: int = 5000
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("splits", 2), ("samples", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"Expected `{name}` to be at least {least}, but got {getattr(self, name)}.")
        if not 0 < self.holdout <= 0.5:
            raise ValueError(f"Expected `holdout` to be in (0, 0.5], but got {self.holdout}.")
        if not self.lr > 0:
            raise ValueError(f"Expected `lr` to be positive, but got {self.lr}.")
        if self.scratch not in {"restart", "given"}:
            raise ValueError(f"Expected `scratch` to be 'restart' or 'given', but got {self.scratch!r}.")

    def rungs(self, sources: int) -> int:
        """How often candidates are judged: halved down to one source, which then runs against scratch.

        Args:
            sources: How many there are.

        Returns:
            The number of rungs.
        """
        return 1 + math.ceil(math.log2(max(1, sources))) if self.halve else 1

    def check(self, sources: int) -> None:
        """Refuse a race in which a rung would not have a step for every candidate and split.

        Args:
            sources: How many there are.

        Raises:
            PGEError: If there are none, or too few steps.
        """
        if not sources:
            raise PGEError("Expected a source to race, but got none. Train one with PrincipalGradientCallback.")
        least = self.rungs(sources) * self.splits * (sources + 1)
        if self.steps < least:
            raise PGEError(
                f"Expected at least {least} `steps` for {sources} sources and scratch on {self.splits} splits"
                f", but got {self.steps}. Race fewer sources, or grant more steps."
            )


class Course:
    """Which samples of a pool each split trains on, in which order, and which it keeps for judging.

    Splits are the parts of a shuffled pool; when all parts have been kept once, the pool is shuffled anew.

    Args:
        samples: Size of the pool.
        holdout: Fraction that is kept.
        batch_size: Samples per step, at most as many as there are.
        seed: Stands for all of it.

    Raises:
        PGEError: If there are too few samples.
    """

    def __init__(self, samples: int, holdout: float, batch_size: int, seed: int) -> None:
        self.samples, self.parts, self.seed = samples, max(2, round(1 / holdout)), seed
        if samples < 2 * self.parts:
            raise PGEError(
                f"Expected at least {2 * self.parts} samples of the target, to keep one in {self.parts} for judging, "
                f"but got {samples}. Decide without a race."
            )
        self.batch_size = min(batch_size, samples - -(-samples // self.parts))

    def held(self, split: int) -> list[list[int]]:
        """The numbers of the samples that a split keeps, in batches."""
        kept = self._shuffled(split)[split % self.parts :: self.parts]
        return [kept[at : at + self.batch_size] for at in range(0, len(kept), self.batch_size)]

    def trained(self, split: int, begin: int, steps: int) -> Iterator[tuple[int, list[int]]]:
        """Number and samples of a split's steps from `begin` on, gone through in freshly shuffled passes."""
        shuffled = self._shuffled(split)
        used = [sample for at, sample in enumerate(shuffled) if at % self.parts != split % self.parts]
        whole = len(used) // self.batch_size
        for number in range(begin, begin + steps):
            order = self._order(len(used), "pass", split, number // whole)
            at = number % whole * self.batch_size
            yield number, [used[i] for i in order[at : at + self.batch_size]]

    def _shuffled(self, split: int) -> list[int]:
        return self._order(self.samples, "split", split // self.parts)

    def _order(self, count: int, *key: str | int) -> list[int]:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, *key))
        order: list[int] = torch.randperm(count, generator=generator).tolist()
        return order


@dataclass
class Track:
    """What racers need: the module they are copies of, and the samples."""

    module: nn.Module
    make: StepMaker
    pool: SamplePool
    course: Course
    plan: RacePlan
    device: torch.device
    datamodule: pl.LightningDataModule | None
    prepare: Callable[[nn.Module], None] | None
    starts: Starts | None = None

    def enter(self, weights: Weights | None) -> list[Racer]:
        """One racer per split, at the start."""
        values = None if weights is None else weights()
        return [self._racer(values, split) for split in range(self.plan.splits)]

    def run(self, racers: list[Racer], begin: int, steps: int) -> list[tuple[float, float | None]]:
        """Let the racers of a candidate go on; loss and accuracy of each on what its split keeps."""
        found = []
        for split, racer in enumerate(racers):
            self._seed("steps", split, begin)
            racer.train(
                (number, self._batch(racer, chosen)) for number, chosen in self.course.trained(split, begin, steps)
            )
            self._seed("judge", split)
            found.append(racer.judge((len(chosen), self._batch(racer, chosen)) for chosen in self.course.held(split)))
        return found

    def settle(self, clone: nn.Module) -> None:
        """Pass a batch through a copy in evaluation mode, which gives lazy parameters their shapes."""
        self._make_ready(clone)
        with evaluating(clone):
            batch = self.pool.batch(self.course.held(0)[0])
            self.make(clone)(place(clone, batch, self.device, self.datamodule), 0)

    def _racer(self, values: Mapping[str, Tensor] | None, split: int) -> Racer:
        clone = isolated_copy(self.module) if self.starts is None else self.starts.make(split, "race")
        if any(is_lazy(value) for value in chain(clone.parameters(), clone.buffers())):
            self._seed("lazy", split)
            self.settle(clone)
        else:
            self._make_ready(clone)
        if values is not None:
            load_encoder(clone, values)
        return Racer(clone, self.make(clone), self.plan.steps, self.plan.lr)

    def _make_ready(self, clone: nn.Module) -> None:
        if self.prepare is not None:
            self.prepare(clone)
        clone.to(self.device)

    def _batch(self, racer: Racer, chosen: list[int]) -> Any:
        return place(racer.clone, self.pool.batch(chosen), self.device, self.datamodule)

    def _seed(self, *key: str | int) -> None:
        seed_all(derive_seed(self.plan.seed, *key))
