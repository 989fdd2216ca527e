"""The callback that records what came of a fine-tuning."""

import math
import os
import re
from collections.abc import Mapping
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from pge_lightning.callbacks.phase import is_dev_run, logged_metrics
from pge_lightning.callbacks.source_selection import SourceSelectionCallback
from pge_lightning.errors import PGEError
from pge_lightning.library import Library
from pge_lightning.rank import Ranking
from pge_lightning.record import SCRATCH, Record
from pge_lightning.select import Selection

__all__ = ["FineTuningRecordCallback"]

_WORDS = {
    "max": {"acc", "accuracy", "auc", "auroc", "f1", "precision", "r2", "recall"},
    "min": {"error", "loss", "mae", "mse", "perplexity"},
}


class FineTuningRecordCallback(Callback):
    """Write down in the library what a fine-tuning gave, so that later rankings learn from it.

    One record per finished run, on rank zero; a dev run and one that was interrupted leave none. The value is what was
    logged last when the fit ended; where that does not log the metric, when a test has ended that follows it.

    Args:
        library: The library, or its path or URL.
        target: What the data set is called, the same in every run on it.
        source: What training starts from: the name of a source, ``"scratch"``, or what ``SourceSelector.select``
            returned. By default what the ``SourceSelectionCallback`` of the same Trainer selects.
        metric: Name of a logged metric; by default what the ``ModelCheckpoint`` monitors.
        mode: ``"max"`` where a higher metric is better, ``"min"`` where a lower one is; by default as the callback says
            that monitors the metric, or else a word in its name, such as acc or loss.
        ranking: Where `source` is a name: what was told of it before, to be recorded beside the result.
        settings: How it was done, in JSON types. Only runs of equal settings are compared with each other; by default
            the Trainer's ``max_epochs`` and ``max_steps`` and the number of batches in an epoch.
        seed: Seed of the run; by default that of ``seed_everything``.

    Attributes:
        record: The record, after it was made.

    Raises:
        MisconfigurationException: If source, metric or mode are not given and cannot be found out.

    Example::

        selection = SourceSelector(library="sources").select(model, datamodule)
        record = FineTuningRecordCallback("sources", target="usps", source=selection, metric="val_acc", mode="max")
        L.Trainer(callbacks=[record]).fit(model, datamodule)
    """

    def __init__(
        self,
        library: str | os.PathLike[str] | Library,
        target: str,
        source: str | Selection | None = None,
        metric: str | None = None,
        mode: Literal["max", "min"] | None = None,
        ranking: Ranking | None = None,
        settings: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> None:
        if mode not in ("max", "min", None):
            raise ValueError(f"Expected `mode` to be 'max' or 'min', but got {mode!r}.")
        self.library = library if isinstance(library, Library) else Library(library)
        self.target, self.metric, self.mode = target, metric, mode
        self.settings, self.seed = settings, seed
        self.record: Record | None = None
        self._selecting: SourceSelectionCallback | None = None
        self._known: dict[str, Any] = {} if source is None else _origin(source, ranking)
        self._fields: dict[str, Any] = {}

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(library=self.library.root, target=self.target)

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if stage != "fit":
            return
        self._fields = {}
        self._selecting = _selecting(trainer)
        if not self._known and self._selecting is None:
            raise MisconfigurationException(
                "FineTuningRecordCallback is not supported without knowing the source. Please pass `source`: the name "
                "of a source, 'scratch', or what `SourceSelector.select` returned."
            )
        self._direction(trainer)
        if trainer.is_global_zero and not is_dev_run(trainer):
            try:
                self.library.check_writable()
            except PGEError as error:  # training is worth more than its record
                rank_zero_warn(f"The fine-tuning on '{self.target}' will not be recorded: {error}")

    @override
    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if is_dev_run(trainer):
            return
        metric, higher = self._direction(trainer)
        settings = _settings(trainer) if self.settings is None else self.settings
        seed = os.environ.get("PL_GLOBAL_SEED", "") if self.seed is None else str(self.seed)
        run = {"seed": int(seed) if seed else None, "settings": settings}
        self._fields = {"target": self.target, "metric": metric, "higher_is_better": higher, **run}
        if metric in logged_metrics(trainer):
            self._write(trainer)
        else:
            rank_zero_info(f"The fit did not log '{metric}': it is recorded when a test has.")

    @override
    def on_test_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self._write(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"origin": self._origin()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._known = self._known or dict(state_dict.get("origin", {}))

    def _origin(self) -> dict[str, Any]:
        """The source and what was told of it; empty where that is not known yet."""
        selection = self._selecting.selection if self._selecting is not None else None
        return self._known or (_origin(selection) if selection is not None else {})

    def _direction(self, trainer: Any) -> tuple[str, bool]:
        """Name of the metric, and whether a higher one is better."""
        metric = self.metric or getattr(trainer.checkpoint_callback, "monitor", None)
        if metric is None:
            raise MisconfigurationException(
                "FineTuningRecordCallback is not supported without a metric. Please name a logged one with `metric`."
            )
        modes = [callback.mode for callback in trainer.callbacks if getattr(callback, "monitor", None) == metric]
        mode = self.mode or next(iter(modes), None) or _mode(metric)
        if mode is None:
            raise MisconfigurationException(
                f"FineTuningRecordCallback is not supported without the direction of '{metric}', which neither "
                "another callback nor its name tells. Please pass `mode`: 'max' where higher is better, or 'min'."
            )
        return metric, mode == "max"

    def _write(self, trainer: "pl.Trainer") -> None:
        """Store the record, once per fit; the training stands whatever happens here."""
        fields, self._fields = self._fields, {}
        if not trainer.is_global_zero or not fields:
            return
        value, origin = logged_metrics(trainer).get(fields["metric"], math.nan), self._origin()
        if not origin or not math.isfinite(value):
            missing = f"'{fields['metric']}' is {value}" if origin else "it is not known what it started from"
            rank_zero_warn(f"The fine-tuning on '{self.target}' is not recorded: {missing}.")
            return
        try:
            self.record = Record(**origin, **fields, value=value)
            self.library.add_record(self.record)
        except (PGEError, ValueError) as error:
            rank_zero_warn(f"The fine-tuning on '{self.target}' is not recorded: {error}")
            return
        rank_zero_info(f"Recorded '{self.target}' from {self.record.source}: {self.record.metric} {value:.4f}.")


def _selecting(trainer: Any) -> SourceSelectionCallback | None:
    return next((each for each in trainer.callbacks if isinstance(each, SourceSelectionCallback)), None)


def _mode(metric: str) -> str | None:
    """The direction that a metric's name tells."""
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    return next((mode for mode, known in _WORDS.items() if words & known), None)


def _origin(source: str | Selection, ranking: Ranking | None = None) -> dict[str, Any]:
    """The source, and what was told of it."""
    if isinstance(source, Selection):
        ranking, source = source.ranking, source.source or SCRATCH
    line = next((line for line in ranking.sources if line.name == source), None) if ranking is not None else None
    told = dict(line.columns) if line is not None else {}
    if ranking is not None and line is not None and line.estimate is not None:
        told[ranking.estimator] = line.estimate.value
    return {"source": source, "estimates": {name: value for name, value in told.items() if math.isfinite(value)}}


def _settings(trainer: "pl.Trainer") -> dict[str, Any]:
    limits = {"max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps, "batches": trainer.num_training_batches}
    return {name: limit for name, limit in limits.items() if limit not in (None, -1, math.inf)}
