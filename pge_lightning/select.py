"""Select: rank the sources of a library for a target, and load the best encoder before fine-tuning begins."""

import copy
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from pge_lightning.collect import Collector
from pge_lightning.collect.loss import LossFn
from pge_lightning.collect.starts import shape_of
from pge_lightning.distributed import agree, on_rank_zero
from pge_lightning.encoder import EncoderSpec
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.functional.gap import KINDS, Kind
from pge_lightning.isolation import isolated_randomness, plain
from pge_lightning.library import Library
from pge_lightning.load import LoadReport, load_encoder, whole_or_not_at_all
from pge_lightning.probe import Probe
from pge_lightning.rank import Ranking, collect_halves, rank_sources
from pge_lightning.restart import Factory
from pge_lightning.signature import Signature
from pge_lightning.source import Source

__all__ = ["Selection", "SourceSelector"]

S = TypeVar("S")
T = TypeVar("T")
Data: TypeAlias = pl.LightningDataModule | DataLoader[Any] | Iterable[Any]


@dataclass(frozen=True)
class Selection:
    """What a selector decided.

    Args:
        ranking: All sources.
        source: Name of the one that was loaded.
        report: What was loaded of it.
    """

    ranking: Ranking
    source: str
    report: LoadReport


class SourceSelector:
    """Ranks the sources of a library for a target and loads the best one.

    Args:
        library: The library, or its path or URL.
        probe: The recipe, or the name of a shipped one; the sources must hold signatures of it.
        kind: The formula of the gap: ``"kernelwise"``, ``"layerwise"``, ``"unit"`` or ``"published"``.
        weigh: Whether each unit of a kernelwise or layerwise gap has an equal say in the ranking, by the inverse of its
            spread over the sources; takes three sources.
        budget: Rung of the ladder to compare at. By default the largest that the target fills and all readable
            sources hold.
        encoder: Names the transferred part, as in :func:`~pge_lightning.collect.collect_signature`. By default the
            longest set of units that agrees in names and shapes between the model and the sources.
        loss_fn: Takes a copy of the model and a batch and returns a scalar loss; by default the LightningModule's own
            ``training_step`` gives it.
        factory: Builds a fresh module of the same kind, where re-initialisation needs help.
        exclude: Names of sources to leave out.
        floor: Whether to measure the noise floor, which costs two more collections.
        cache: Whether the target's signature is kept in the library, and taken from there when it fits.
        device: Where the warm-up runs; by default where the model is.
        verbose: Whether to print the table and show progress.

    Raises:
        ValueError: If `kind` or the probe's name is unknown.

    Example::

        selection = SourceSelector(library="sources").select(model, datamodule)
        trainer.fit(model, datamodule)
    """

    def __init__(
        self,
        library: Library | str | os.PathLike[str],
        *,
        probe: Probe | str = "default",
        kind: Kind = "kernelwise",
        weigh: bool = True,
        budget: int | None = None,
        encoder: EncoderSpec = None,
        loss_fn: LossFn | None = None,
        factory: Factory | None = None,
        exclude: Collection[str] = (),
        floor: bool = False,
        cache: bool = True,
        device: torch.device | str | None = None,
        verbose: bool = True,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"Expected `kind` to be one of {KINDS}, but got {kind!r}.")
        self.library = library if isinstance(library, Library) else Library(library)
        self.probe, self.kind, self.weigh, self.budget = Probe.of(probe), kind, weigh, budget
        self.encoder, self.loss_fn, self.factory = encoder, loss_fn, factory
        self.exclude, self.floor, self.cache = frozenset(exclude), floor, cache
        self.device, self.verbose = device, verbose

    def select(self, model: nn.Module, data: Data, **context: Any) -> Selection:
        """Rank the sources, print the table, and load the encoder of the best one into the model.

        Where the weights of the best one cannot be read, it counts as failed, and the next one is loaded.

        Args:
            model: The model to be fine-tuned; only its encoder's values change, in place.
            data: The target: a data module, a loader, or an iterable of batches.
            **context: As in :meth:`rank`.

        Returns:
            The ranking, the source's name and what was loaded of it.

        Raises:
            PGEError: If there are no sources, none compares, or the target's signature cannot be collected.
        """
        ranking = self.rank(model, data, **context)
        with whole_or_not_at_all(model):
            return self.load_best(model, ranking, bool(context.get("distributed")))

    def load_best(self, model: nn.Module, ranking: Ranking, distributed: bool = False) -> Selection:
        """Load the encoder of the best source of a ranking that can be read, in place.

        Args:
            model: The model to be fine-tuned.
            ranking: From :meth:`rank`.
            distributed: Whether all processes of the default group call this.

        Returns:
            The ranking, the source's name and what was loaded of it.
        """
        while True:
            name = ranking.best.name
            try:
                return Selection(ranking, name, self.load(model, name, distributed))
            except (PGEError, OSError) as error:
                rank_zero_warn(f"Source '{name}' is nearest, but cannot be loaded: {error}")
                ranking = ranking.without(name, str(error))

    def load(self, model: nn.Module, name: str, distributed: bool = False) -> LoadReport:
        """Load the encoder of one source into the model, in place.

        Args:
            model: The model to be fine-tuned.
            name: The source.
            distributed: Whether all processes of the default group call this: rank zero reads, all load the same.

        Returns:
            What was loaded, left and skipped.
        """
        weights = on_rank_zero(lambda: self.library.open(name).load_weights(), distributed)
        report = agree(lambda: load_encoder(model, weights), distributed)
        if self.verbose:
            Console().print(f"Source '{name}': {report}.")
        return report

    def rank(self, model: nn.Module, data: Data, **context: Any) -> Ranking:
        """Rank all sources for a target, without changing the model.

        Args:
            model: The model to be fine-tuned.
            data: The target: a data module, a loader, or an iterable of batches.
            **context: Further arguments of :class:`~pge_lightning.collect.Collector`. With ``distributed=True`` all
                processes of the default group take part; rank zero reads the library, and its ranking counts.

        Returns:
            The ranking; sources that cannot be read or compared stand at its end with the reason.

        Raises:
            PGEError: If there are no sources, or the target's signature cannot be collected.
        """
        together = bool(context.get("distributed"))
        sources: dict[str, Source | Exception] = {}  # filled on rank zero only, which decides for all
        on_rank_zero(lambda: sources.update(self._open_sources()), together)
        loader, datamodule = agree(lambda: _training_data(data), together)
        units = on_rank_zero(lambda: self._agreeing_units(model, sources) if self.encoder is None else None, together)
        collector = Collector(
            model,
            loader,
            **{
                "probe": self.probe,
                "loss_fn": self.loss_fn,
                "encoder": self.encoder if units is None else lambda _: units,
                "factory": self.factory,
                "device": self.device,
                "datamodule": datamodule,
                "progress": self.verbose,
                **context,
            },
        )
        target = self.signature(collector, on_rank_zero(lambda: self._common_budget(collector, sources), together))
        halves = collect_halves(collector) if self.floor else None
        ranking = on_rank_zero(lambda: rank_sources(target, sources, self.kind, halves, self.weigh), together)
        if self.verbose:
            Console().print(ranking)
        return ranking

    def signature(self, collector: Collector, budget: int) -> Signature:
        """The target's signature: a stored one whose fingerprint fits, or else a fresh one, which is then stored.

        Returns:
            The signature.
        """
        if not self.cache or collector.distributed:
            return collector.collect(budget)
        key = f"{collector.probe.name}-{budget}-{collector.data}-{collector.task}"
        stored = self.library.get_target(key)
        if stored is not None and collector.fits(stored, budget):
            return stored
        fresh = collector.collect(budget)
        try:
            self.library.put_target(key, fresh)
        except ArtifactError as error:
            rank_zero_warn(f"The target's signature is not kept for later: {error}")
        return fresh

    def _open_sources(self) -> dict[str, Source | Exception]:
        names = [name for name in self.library.names() if name not in self.exclude]
        if not names:
            beside = f" beside the excluded {sorted(self.exclude)}" if self.exclude else ""
            raise PGEError(
                f"Expected sources in the library '{self.library.root}', but there are none{beside}. "
                "Train one with PrincipalGradientCallback."
            )
        return {name: _attempt(self.library.open, name) for name in names}

    def _agreeing_units(self, model: nn.Module, sources: Mapping[str, Source | Exception]) -> frozenset[str] | None:
        """The longest set of units of a source that the model has too, name by name and shape by shape."""
        own = {name: shape_of(unit) for name, unit in plain(model).named_parameters()}
        found = set()
        for source in [source for source in sources.values() if isinstance(source, Source)]:
            stored = _attempt(source.load_signature, source.signatures[0]) if source.signatures else None
            shapes = stored.fingerprint["shapes"] if isinstance(stored, Signature) else {}
            if shapes and all(own.get(name, 0) in (None, shape) for name, shape in shapes.items()):
                found.add(frozenset(shapes))
        longest = [units for units in found if len(units) == max(map(len, found))]
        if not longest:
            return None
        if len(longest) > 1:
            raise PGEError(
                f"Expected one longest set of agreeing units, but {len(longest)} sets of {len(longest[0])} agree. "
                "Name the transferred part with `encoder=`."
            )
        if self.verbose:
            Console().print(f"Encoder: the {len(longest[0])} units that agree with the sources in name and shape.")
        return longest[0]

    def _common_budget(self, collector: Collector, sources: Mapping[str, Source | Exception]) -> int:
        """The rung to compare at."""
        rungs = collector.budgets
        if self.budget is not None and self.probe.budgets and self.budget not in rungs:
            raise PGEError(
                f"Expected `budget` to be a rung that the target fills, one of {rungs}, but got {self.budget}."
            )
        if self.budget is not None or not self.probe.budgets:
            return self.budget or rungs[-1]
        opened, shapes = [x for x in sources.values() if isinstance(x, Source)], collector.starts.shapes
        agreed = (rung for rung in reversed(rungs) if all(self._agrees(source, rung, shapes) for source in opened))
        return next(agreed, rungs[-1])

    def _agrees(self, source: Source, rung: int, shapes: Mapping[str, list[int]]) -> bool:
        """Whether a source holds a rung; one that could not be compared at any other rung either has no say."""
        entries = [entry for entry in source.signatures if entry.recipe == self.probe.recipe]
        if rung in {entry.budget for entry in entries}:
            return True
        stored = (_attempt(source.load_signature, entry) for entry in entries)
        return not any(
            isinstance(signature, Signature) and signature.fingerprint["shapes"] == shapes for signature in stored
        )


def _attempt(action: Callable[[S], T], of: S) -> T | Exception:
    """The result of an action on one source, or the reason why there is none."""
    try:
        return action(of)
    except (PGEError, ValueError, OSError) as error:
        return error


def _training_data(data: Data) -> tuple[Any, pl.LightningDataModule | None]:
    """The training loader, and the data module it came from; the user's own data module is not set up."""
    if not isinstance(data, pl.LightningDataModule):
        return data, None
    with isolated_randomness():
        # Shared, not copied: a Trainer that used the data module before holds models, loggers and locks.
        datamodule = copy.deepcopy(data, {id(data.trainer): data.trainer})
        datamodule.prepare_data()
        datamodule.setup("fit")
        return datamodule.train_dataloader(), datamodule
