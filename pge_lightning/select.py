"""Select: rank the sources of a library for a target, and load the best encoder before fine-tuning begins."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch import nn

from pge_lightning.advise import with_decision
from pge_lightning.collect.loss import LossFn
from pge_lightning.distributed import agree, on_rank_zero
from pge_lightning.encoder import EncoderSpec
from pge_lightning.encoder_features import FeaturesFn
from pge_lightning.errors import PGEError
from pge_lightning.estimators.default import default_estimator
from pge_lightning.estimators.estimator import Estimator
from pge_lightning.estimators.gap import GapEstimator
from pge_lightning.estimators.opening import Data
from pge_lightning.estimators.target import Target
from pge_lightning.library import Library
from pge_lightning.load import LoadReport, load_encoder, whole_or_not_at_all
from pge_lightning.probe import Probe
from pge_lightning.race import RacePlan
from pge_lightning.rank import Ranking, rank_sources
from pge_lightning.records import Records
from pge_lightning.restart import Factory

__all__ = ["Selection", "SourceSelector"]


@dataclass(frozen=True)
class Selection:
    """What a selector decided.

    Args:
        ranking: All sources.
        source: Name of the one that was loaded; ``None`` where the advice is to start from scratch.
        report: What was loaded of it, if anything was.
    """

    ranking: Ranking
    source: str | None
    report: LoadReport | None


class SourceSelector:
    """Ranks the sources of a library for a target and loads the best one.

    Args:
        library: The library, or its path or URL.
        estimator: What ranks the sources; by default :func:`~pge_lightning.estimators.default_estimator`.
        probe: Rank by the gap alone, under this probe or the shipped one of this name.
        name: What the target is called in the library's records, if it has a name.
        encoder: Names the transferred part, as in :func:`~pge_lightning.collect.collect_signature`. By default the
            longest set of units that agrees in names and shapes between the model and the sources.
        loss_fn: Takes a copy of the model and a batch and returns a scalar loss; by default the LightningModule's own
            ``training_step`` gives it.
        factory: Builds a fresh module of the same kind, where re-initialisation needs help.
        features: Takes a copy of the model and a batch and returns features ``[batch, d]``; by default what leaves
            the encoder.
        samples: Most target samples that features are computed for.
        scratch: Whether the advice may be to start from scratch, so that nothing is loaded.
        race: What a race of the best sources against scratch may cost; none is run without it.
        exclude: Names of sources to leave out.
        records: Finished fine-tunings to learn from; by default those of the library.
        cache: Whether the target's signature is kept in the library, and taken from there when it fits; likewise what
            comparisons take of the sources' signatures, and the gaps between sources.
        device: Where copies of the model run; by default where the model is.
        verbose: Whether to print the table and show progress.

    Raises:
        ValueError: If both an estimator and a probe are given, or the probe's name is unknown.

    Example::

        selection = SourceSelector(library="sources").select(model, datamodule)
        trainer.fit(model, datamodule)
    """

    def __init__(
        self,
        library: Library | str | os.PathLike[str],
        estimator: Estimator | None = None,
        *,
        probe: Probe | str | None = None,
        name: str | None = None,
        encoder: EncoderSpec = None,
        loss_fn: LossFn | None = None,
        factory: Factory | None = None,
        features: FeaturesFn | None = None,
        samples: int = 5000,
        scratch: bool = True,
        race: RacePlan | None = None,
        exclude: Collection[str] = (),
        records: Records | None = None,
        cache: bool = True,
        device: torch.device | str | None = None,
        verbose: bool = True,
    ) -> None:
        if estimator is not None and probe is not None:
            raise ValueError("Expected `estimator` or `probe`, but got both. Give the probe to the estimator.")
        self.library = library if isinstance(library, Library) else Library(library)
        self.estimator = estimator or (default_estimator() if probe is None else GapEstimator(probe))
        self.encoder, self.scratch, self.race, self.verbose = encoder, scratch, race, verbose
        self._options: dict[str, Any] = {
            "name": name,
            "encoder": encoder,
            "loss_fn": loss_fn,
            "factory": factory,
            "features": features,
            "samples": samples,
            "exclude": frozenset(exclude),
            "records": records,
            "cache": cache,
            "device": device,
            "verbose": verbose,
        }

    def select(self, model: nn.Module, data: Data, **context: Any) -> Selection:
        """Rank the sources, print table and advice, and load the encoder of the best one into the model.

        Where the weights of the best one cannot be read, it counts as failed, and the next one is loaded. Nothing is
        loaded where starting from scratch is advised, and may be.

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
        """Load the encoder of the best source of a ranking that can be read, in place, or none where none is advised.

        Args:
            model: The model to be fine-tuned.
            ranking: From :meth:`rank`.
            distributed: Whether all processes of the default group call this.

        Returns:
            The ranking, the source's name and what was loaded of it.
        """
        while True:
            decision = ranking.decision
            name = ranking.best.name if decision is None else decision.best
            if self.scratch and decision is not None and decision.source is None:
                return Selection(ranking, None, None)
            try:
                return Selection(ranking, name, self.load(model, name, distributed))
            except (PGEError, OSError) as error:
                rank_zero_warn(f"Source '{name}' is the best, but cannot be loaded: {error}")
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
        target = self.target(model, data, **context)
        ranking = with_decision(target, rank_sources(target, self.estimator), self.race)
        if self.verbose:
            Console().print(ranking)
        return ranking

    def target(self, model: nn.Module, data: Data, **context: Any) -> Target:
        """What estimators may ask about a target.

        Args:
            model: The model to be fine-tuned.
            data: The target: a data module, a loader, or an iterable of batches.
            **context: As in :meth:`rank`.

        Returns:
            The target.
        """
        return Target(model, data, self.library, **{**self._options, **context})
