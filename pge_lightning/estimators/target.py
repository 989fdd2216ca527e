"""Target: what estimators may ask about a target and a library, each thing computed once and shared by all."""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch import nn

from pge_lightning.collect import Collector
from pge_lightning.collect.loss import LossFn
from pge_lightning.distributed import agree, on_rank_zero
from pge_lightning.encoder import EncoderSpec
from pge_lightning.encoder_features import FeaturesFn
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.estimators.estimator import Estimate, Estimates, Estimator
from pge_lightning.estimators.features import Extractor, Features
from pge_lightning.estimators.opening import Data, agreeing_units, agrees, open_sources, training_data
from pge_lightning.library import Library
from pge_lightning.probe import Probe
from pge_lightning.race import Race, RacePlan, run_race
from pge_lightning.records import Records
from pge_lightning.restart import Factory
from pge_lightning.signature import Signature
from pge_lightning.source import Source

__all__ = ["Target"]

T = TypeVar("T")


class Target:
    """A data set to be fine-tuned on, the model to be fine-tuned, and the library to choose from.

    Estimators take from here what they need. Nothing is computed before it is asked for, and nothing twice.

    Args:
        model: The model to be fine-tuned; only copies of it are touched.
        data: The target: a data module, a loader, or an iterable of batches.
        library: The library.
        name: What the target is called in the library's records, if it has a name.
        encoder: Names the transferred part, as in :func:`~pge_lightning.collect.collect_signature`. By default the
            longest set of units that agrees in names and shapes between the model and the sources.
        loss_fn: Takes a copy of the model and a batch and returns a scalar loss; by default the LightningModule's own
            ``training_step`` gives it.
        factory: Builds a fresh module of the same kind, where re-initialisation needs help.
        features: Takes a copy of the model and a batch and returns features ``[batch, d]``; by default those that
            leave the encoder.
        samples: Most target samples that features are computed for.
        exclude: Names of sources to leave out.
        records: Finished fine-tunings to learn from; by default those of the library.
        device: Where copies run; by default where the model is.
        cache: Whether the target's signatures are kept in the library, and taken from there when they fit; likewise
            what comparisons take of the sources' signatures, and the gaps between sources.
        verbose: Whether to show progress.
        **context: Further arguments of :class:`~pge_lightning.collect.Collector`. With ``distributed=True`` all
            processes of the default group take part; rank zero reads the library.

    Attributes:
        sources: Name to the opened source, or to what went wrong in opening it; on rank zero only.
        names: Names of the sources that could be opened.
        failures: Name of a source that could not be opened to the reason.
        columns: Estimator to its estimates, as far as there are any.
        details: Estimator to what it says of its own work, in JSON types.
        notes: What a reader of the ranking should know, in sentences.

    Raises:
        PGEError: If there are no sources, or it is ambiguous which units are the encoder.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        library: Library,
        *,
        name: str | None = None,
        encoder: EncoderSpec = None,
        loss_fn: LossFn | None = None,
        factory: Factory | None = None,
        features: FeaturesFn | None = None,
        samples: int = 5000,
        exclude: Collection[str] = (),
        records: Records | None = None,
        device: torch.device | str | None = None,
        cache: bool = True,
        verbose: bool = False,
        **context: Any,
    ) -> None:
        self.model, self.library, self.name, self.cache, self.verbose = model, library, name, cache, verbose
        self.distributed = bool(context.get("distributed"))
        self.features_fn, self.samples, self._records = features, samples, records
        self.sources: dict[str, Source | Exception] = {}
        self.alone(lambda: self.sources.update(open_sources(library, exclude)))
        opened = self.alone(lambda: {name: isinstance(source, Source) for name, source in self.sources.items()})
        self.names = [name for name, is_open in opened.items() if is_open]
        self.failures = self.alone(lambda: {name: str(self.sources[name]) for name in opened if not opened[name]})
        self._loader, datamodule = agree(lambda: training_data(data), self.distributed)
        units = self.alone(lambda: agreeing_units(model, self.sources.values()) if encoder is None else None)
        if units is not None and verbose:
            Console().print(f"Encoder: the {len(units)} units that agree with the sources in name and shape.")
        self.encoder: EncoderSpec = encoder if units is None else lambda _: units
        common = {"loss_fn": loss_fn, "factory": factory, "device": device, "datamodule": datamodule}
        self.options: dict[str, Any] = {**common, "encoder": self.encoder, "progress": verbose, **context}
        self.columns: dict[str, dict[str, Estimate | Exception]] = {}
        self.details: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []
        self._judged: list[tuple[Estimator, dict[str, Estimate | Exception]]] = []
        self._collectors: dict[Probe, Collector] = {}
        self._signatures: dict[tuple[Probe, int], Signature] = {}

    def alone(self, work: Callable[[], T]) -> T:
        """Do a piece of work on rank zero only; its result, or its error, reaches every process.

        Args:
            work: What to do; its result must be picklable where there are several processes.

        Returns:
            Its result.
        """
        return on_rank_zero(work, self.distributed)

    def judge(self, estimator: Estimator, sources: Sequence[str]) -> Estimates:
        """Ask an estimator about sources, unless it was asked before.

        Args:
            estimator: The estimator.
            sources: Names of sources that could be opened.

        Returns:
            Source to its estimate, or to what went wrong with this source.
        """
        left = [name for name in sources if name not in self.known(estimator)]
        found = estimator.estimate(self, left) if left else {}
        known = {**self.known(estimator), **found}
        if any(name not in known for name in sources):  # a source failed, and the estimator made the target forget
            known |= estimator.estimate(self, [name for name in sources if not isinstance(found.get(name), Exception)])
        self.columns[estimator.name] = known
        self._judged = [*((other, said) for other, said in self._judged if other != estimator), (estimator, known)]
        return {name: known[name] for name in sources}

    def known(self, estimator: Estimator) -> Estimates:
        """What an estimator has said so far; columns go by names, which others may share.

        Args:
            estimator: The estimator.

        Returns:
            Source to its estimate, or to what went wrong with it.
        """
        return next((found for other, found in self._judged if other == estimator), {})

    def forget(self) -> None:
        """Take back what was said, as if no estimator had been asked; what was computed stays.

        For another ranking, and where a source has failed that others were judged in the light of.
        """
        self._judged, self.columns = [], {}

    def collector(self, probe: Probe) -> Collector:
        """What collects this target's signatures of one probe, its samples read and all checks done.

        Args:
            probe: The probe.

        Returns:
            The collector.
        """
        if probe not in self._collectors:
            self._collectors[probe] = Collector(self.model, self._loader, **{**self.options, "probe": probe})
        return self._collectors[probe]

    def rungs(self, probe: Probe) -> list[int]:
        """The rungs at which a target can be compared: all, but for a target that is walked as the sources.

        Args:
            probe: The probe.

        Returns:
            Sample budgets in ascending order; without a ladder, all samples.
        """
        return list(probe.budgets) if probe.target and probe.budgets else self.collector(probe).budgets

    def budget(self, probe: Probe) -> int:
        """The largest of these rungs that all readable sources hold.

        Args:
            probe: The probe.

        Returns:
            Samples per restart.
        """
        rungs, shapes = self.rungs(probe), self.collector(probe.of_target).starts.shapes

        def choose() -> int:
            opened = [source for source in self.sources.values() if isinstance(source, Source)]
            agreed = (rung for rung in reversed(rungs) if all(agrees(each, probe, rung, shapes) for each in opened))
            return next(agreed, rungs[-1]) if probe.budgets else rungs[-1]

        return self.alone(choose)

    def signature(self, probe: Probe, budget: int | None = None) -> Signature:
        """The target's signature: a stored one whose fingerprint fits, or else a fresh one, which is then stored.

        Args:
            probe: The probe.
            budget: Rung of its ladder; by default as :meth:`budget` says. Of no matter where a target has a walk of
                its own, which takes all samples.

        Returns:
            The signature.
        """
        own = probe.of_target
        if own is not probe:
            budget = len(self.collector(own).pool)
        rung = self.budget(probe) if budget is None else budget
        if (own, rung) not in self._signatures:
            self._signatures[own, rung] = self._signature(self.collector(own), rung)
        return self._signatures[own, rung]

    def features(self, source: str | None, draw: int = 0) -> Features:
        """What a source's encoder makes of the target's samples; on rank zero only.

        Args:
            source: Name of the source; ``None`` for a re-initialised encoder.
            draw: Which re-initialisation.

        Returns:
            Features and labels.
        """
        return self._extractor(source, draw)

    def race(self, sources: Sequence[str], plan: RacePlan) -> Race:
        """Let a few sources and scratch take fine-tuning steps on copies.

        Args:
            sources: Names of sources that could be opened.
            plan: What the race may cost.

        Returns:
            The race.

        Raises:
            PGEError: If several processes take part, or as :func:`~pge_lightning.race.run_race`.
        """
        if self.distributed:
            raise PGEError("Expected one process for a race, but several take part. Select before `trainer.fit`.")
        opened = {name: source for name in sources if isinstance(source := self.sources[name], Source)}
        weights = {name: source.load_weights for name, source in opened.items()}
        taken = ("loss_fn", "device", "datamodule", "prepare", "limit", "encoder", "factory", "thaw", "progress")
        options = {name: self.options[name] for name in taken if name in self.options}
        return run_race(self.model, self._loader, weights, plan, **options)

    @property
    def judged(self) -> list[Estimator]:
        """The estimators that were asked."""
        return [estimator for estimator, _ in self._judged]

    def prepare_features(self) -> None:
        """Read the target's samples; every process must call this before rank zero asks for features."""
        _ = self._extractor

    @cached_property
    def records(self) -> Records:
        """Finished fine-tunings of other times; on rank zero only."""
        return self.library.records() if self._records is None else self._records

    @cached_property
    def _extractor(self) -> Extractor:
        return Extractor(self.model, self._loader, self.sources, self.samples, self.features_fn, self.options)

    def _signature(self, collector: Collector, budget: int) -> Signature:
        if not self.cache or collector.distributed:
            return collector.collect(budget)
        key = f"{collector.probe.name}-{budget}-{collector.data}-{collector.task}"
        stored = self.library.cache.get_target(key)
        if stored is not None and collector.fits(stored, budget):
            return stored
        fresh = collector.collect(budget)
        try:
            self.library.cache.put_target(key, fresh)
        except ArtifactError as error:
            rank_zero_warn(f"The target's signature is not kept for later: {error}")
        return fresh
