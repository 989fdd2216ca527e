"""Race: a few candidates take real fine-tuning steps on copies, and the worse half drops out again and again."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

import lightning.pytorch as pl
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from torch import nn

from pge_lightning.collect.loss import LossFn, make_step
from pge_lightning.collect.starts import Starts
from pge_lightning.encoder import EncoderSpec
from pge_lightning.errors import PGEError
from pge_lightning.isolation import borrowed, isolated_randomness, plain
from pge_lightning.isolation.memory import release
from pge_lightning.probe import Probe
from pge_lightning.race.racer import Racer
from pge_lightning.race.track import Course, RacePlan, Track, Weights
from pge_lightning.restart import Factory
from pge_lightning.samples import sample_pool

__all__ = ["Lane", "Race", "run_race"]


@dataclass(frozen=True)
class Lane:
    """What one candidate did in a race.

    Args:
        source: Its name; ``None`` for scratch.
        steps: Steps that it took on every split.
        losses: Its loss on what each split kept back, by the module's own step in evaluation mode; lower is better.
        accuracies: How often it was right there, in [0, 1]; empty where the loss is no cross entropy of class numbers.
        advantages: Its accuracy less that of scratch after as many steps on the same split or, where there is none, the
            loss of scratch less its own; positive where the source helps.
        reason: Why it failed; empty where it did not.
    """

    source: str | None
    steps: int = 0
    losses: tuple[float, ...] = ()
    accuracies: tuple[float, ...] = ()
    advantages: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Race:
    """The end of a race.

    Args:
        lanes: One per candidate: the longest run and then the lowest loss first; those that failed last.
        steps: Steps that were taken in all.
        seconds: Wall-clock time.
        optimizer: What took the steps.
        held_to_trained: Samples that a split keeps for judging, per sample that it trains on.
    """

    lanes: tuple[Lane, ...]
    steps: int
    seconds: float
    optimizer: str
    held_to_trained: float = 1 / 3

    def lane(self, source: str | None) -> Lane | None:
        """What one candidate did.

        Args:
            source: Its name; ``None`` for scratch.

        Returns:
            Its lane, if it took part.
        """
        return next((lane for lane in self.lanes if lane.source == source), None)

    @property
    def best(self) -> str | None:
        """The source that stayed longest; ``None`` if all failed."""
        return next((lane.source for lane in self.lanes if lane.source is not None and not lane.reason), None)

    def __rich__(self) -> Group:
        """The table that is printed, and below it why candidates failed."""
        title = f"race of {self.steps} steps in {self.seconds:.1f} s by {self.optimizer}; on held-out samples"
        table = Table("starts from", "steps", "loss", "accuracy", "better than scratch", title=title, box=SIMPLE_HEAD)
        for lane in self.lanes:
            values = (
                ("-", "-", "failed") if lane.reason else (_mean(lane.losses), _mean(lane.accuracies), _margin(lane))
            )
            table.add_row(lane.source or "scratch", str(lane.steps), *values)
        failed = [Text(f"{lane.source} failed: {lane.reason}") for lane in self.lanes if lane.reason]
        return Group(table, *failed)


def _mean(values: tuple[float, ...]) -> str:
    return f"{fmean(values):.4f}" if values else "-"


def _margin(lane: Lane) -> str:
    if not lane.advantages:
        return "-"
    kind = "accuracy" if lane.accuracies else "loss"
    ahead = sum(value > 0 for value in lane.advantages)
    return f"{kind} by {fmean(lane.advantages):+.4f}, on {ahead} of {len(lane.advantages)} splits"


def run_race(
    module: nn.Module,
    data: Any,
    sources: Mapping[str, Weights],
    plan: RacePlan | None = None,
    *,
    loss_fn: LossFn | None = None,
    device: torch.device | str | None = None,
    datamodule: pl.LightningDataModule | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
    limit: int | None = None,
    encoder: EncoderSpec = None,
    factory: Factory | None = None,
    thaw: bool = False,
    progress: bool = False,
) -> Race:
    """Fine-tune copies of a module from several sources, and from scratch, for a few steps.

    Successive halving (Jamieson and Talwalkar 2016, section 3): all rungs have the same number of steps, and after each
    the half of the sources with the higher held-out loss drops out; copies go on where they were. Scratch runs to the
    end: it is what sources are compared with, by accuracy where the step shows one. (Which of two sources is better the
    loss tells more surely; whether a source is better than scratch, the accuracy.) A split has its own start, the same
    for all candidates but for the encoder that a source loads, and its own batches and noise: of a single start, luck
    would decide. Learning-rate schedules are left out: their peak counts. In memory there are a copy and an optimizer
    state for each candidate and split.

    Args:
        module: The module to be fine-tuned; only copies of it are touched.
        data: A ``DataLoader``, any iterable of batches, or several of them as Lightning combines them.
        sources: Name to a function that reads the weights; a source that fails drops out with the reason.
        plan: What the race may cost.
        loss_fn: Takes a copy of the module and a batch; by default the module's own ``training_step``.
        device: Where copies run; by default where the module is.
        datamodule: Its transfer hooks take part where it overrides them.
        prepare: Called with every copy before it is used.
        limit: Most batches of the loader to consider.
        encoder: Names the transferred part, where scratch is a restart: a submodule, a pattern or a callable.
        factory: Builds a fresh module of the same kind, where re-initialisation needs help.
        thaw: Whether frozen parameters of the encoder count as trainable.
        progress: Whether to show a bar over the steps.

    Returns:
        What each candidate did.

    Raises:
        PGEError: If there is no loss, there are too few samples or steps, nothing re-initialises the module, or it
            cannot be trained from scratch.
    """
    plan = plan or RacePlan()
    plan.check(len(sources))
    size = plan.batch_size or getattr(data, "batch_size", None) or 32
    pool = sample_pool(data, Probe("race", restarts=1, batch_size=1, budgets=(plan.samples,)), limit)
    course = Course(len(pool), plan.holdout, size, plan.seed)
    where = torch.device(device) if device is not None else next(plain(module).parameters()).device
    torch.empty(0, device=where)  # wakes the device, so that its random state is put back, too
    track = Track(plain(module), make_step(module, loss_fn), pool, course, plan, where, datamodule, prepare)
    bar = Progress(transient=True, disable=not progress)
    with isolated_randomness(), borrowed(data), torch.inference_mode(mode=False), torch.enable_grad(), bar:
        if plan.scratch == "restart":
            track.starts = Starts(track.module, Probe("race", seed=plan.seed), encoder, thaw)
            track.starts.check(factory, track.settle)
        return _Halving(track, bar).run(sources)


class _Halving:
    """The race itself: who is still in it, and what all have done."""

    def __init__(self, track: Track, bar: Progress) -> None:
        self.track, self.bar, self.begin = track, bar, time.perf_counter()
        self.racing: dict[str | None, list[Racer]] = {}
        self.lanes: dict[str | None, Lane] = {}
        self.done = self.taken = 0

    def run(self, sources: Mapping[str, Weights]) -> Race:
        """Run all rungs."""
        plan, rungs = self.track.plan, self.track.plan.rungs(len(sources))
        task = self.bar.add_task("race", total=plan.steps)
        self._try(None, lambda: self._enter(None, None))
        for source, weights in sources.items():
            self._try(source, partial(self._enter, source, weights))
        optimizer = type(self.racing[None][0].optimizer).__name__
        for rung in range(rungs):
            if len(self.racing) < 2:
                break
            steps = plan.steps // (rungs * plan.splits * len(self.racing))
            for name in list(self.racing):
                self.bar.update(task, description=name or "scratch")
                self._try(name, partial(self._go_on, name, steps))
                self.bar.advance(task, steps * plan.splits)
            self.done += steps
            if rung < rungs - 1:
                self._drop_half()
        seconds = time.perf_counter() - self.begin
        lanes = tuple(sorted(self.lanes.values(), key=_order))
        return Race(lanes, self.taken, seconds, optimizer, 1 / (self.track.course.parts - 1))

    def _enter(self, name: str | None, weights: Weights | None) -> None:
        self.lanes[name] = Lane(name)
        self.racing[name] = self.track.enter(weights)

    def _go_on(self, name: str | None, steps: int) -> None:
        """Let one candidate go on; scratch comes first, so that its losses are there to compare."""
        found = self.track.run(self.racing[name], self.done, steps)
        self.taken += steps * len(found)
        losses = tuple(loss for loss, _ in found)
        known = tuple(accuracy for _, accuracy in found if accuracy is not None)
        accuracies = known if len(known) == len(found) else ()
        given = self.lanes[None]
        if name is None:
            ahead: tuple[float, ...] = ()
        elif accuracies and given.accuracies:
            ahead = tuple(own - its for own, its in zip(accuracies, given.accuracies, strict=True))
        else:
            ahead = tuple(its - own for own, its in zip(losses, given.losses, strict=True))
        self.lanes[name] = Lane(name, self.done + steps, losses, accuracies, ahead)

    def _try(self, name: str | None, action: Callable[[], None]) -> None:
        """Let a source drop out where it fails; without scratch there is no race."""
        try:
            action()
        except Exception as error:  # of any kind: weights, forward and loss are the user's
            if name is None:
                raise PGEError(f"Expected a model that takes fine-tuning steps from scratch, but: {error}") from error
            self.lanes[name] = replace(
                self.lanes[name], losses=(), accuracies=(), advantages=(), reason=_one_line(error)
            )
            self._drop(name)

    def _drop_half(self) -> None:
        """Let the sources with the higher losses go."""
        order = sorted((fmean(self.lanes[name].losses), name) for name in self.racing if name is not None)
        for _, name in order[-(-len(order) // 2) :]:
            self._drop(name)

    def _drop(self, name: str) -> None:
        for racer in self.racing.pop(name, []):
            release(racer.clone)


def _order(lane: Lane) -> tuple[bool, int, float]:
    return bool(lane.reason), -lane.steps, fmean(lane.losses) if lane.losses else math.inf


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())
