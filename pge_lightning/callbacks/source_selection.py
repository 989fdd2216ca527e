"""The callback that selects a source in the same call as fine-tuning."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from pge_lightning.callbacks.phase import check_strategy, phase, phase_context, resumed
from pge_lightning.select import Selection, SourceSelector

__all__ = ["SourceSelectionCallback"]

EARLIER = (LearningRateFinder, BatchSizeFinder, WeightAveraging, StochasticWeightAveraging)


class SourceSelectionCallback(Callback):
    """Select a source and load its encoder when training starts: the one-call form of ``SourceSelector``.

    It ranks in ``on_train_start`` and copies the winner's values into the module in place. Prefer the two-call form
    where other callbacks look at the weights before that hook. A run that goes on from a checkpoint keeps its weights.

    Args:
        library: The library, or its path or URL.
        **options: Further arguments of :class:`~pge_lightning.select.SourceSelector`.

    Attributes:
        selection: The ranking and what was loaded, after training has started.

    Raises:
        MisconfigurationException: If the Trainer's strategy shards parameters.
        PGEError: As :meth:`~pge_lightning.select.SourceSelector.select`.

    Example::

        L.Trainer(callbacks=[SourceSelectionCallback(library="sources")]).fit(model, datamodule)
    """

    def __init__(self, library: str, **options: Any) -> None:
        self.selector = SourceSelector(library, **options)
        self.selection: Selection | None = None
        self._source: str | None = None

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if stage != "fit":
            return
        check_strategy(trainer, type(self).__name__)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by Lightning's callback connector
            if isinstance(callback, EARLIER):
                rank_zero_warn(
                    f"{type(callback).__name__} looks at the weights before SourceSelectionCallback replaces them. "
                    "Select with `SourceSelector` before `trainer.fit` instead."
                )

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if self._source is not None or resumed(trainer):
            rank_zero_info("The weights stand as they are: a source was selected before, or training goes on.")
            return
        self.selector.verbose = self.selector.verbose and trainer.is_global_zero
        loader, context = phase_context(trainer)
        with phase(trainer, f"{type(self).__name__}.select"):
            self.selection = self.selector.select(pl_module, loader, **context)
        self._source = self.selection.source

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"source": self._source}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._source = state_dict.get("source")
