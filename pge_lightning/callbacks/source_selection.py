"""The callback that selects a source in the same call as fine-tuning."""

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LearningRateFinder, ModelPruning, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from pge_lightning.callbacks.phase import check_strategy, phase, phase_context
from pge_lightning.distributed import agree
from pge_lightning.library import Library
from pge_lightning.load import whole_or_not_at_all
from pge_lightning.select import Selection, SourceSelector

__all__ = ["SourceSelectionCallback"]

COPYING = (WeightAveraging, ModelPruning)


class SourceSelectionCallback(Callback):
    """Select a source and load its encoder when training starts: the one-call form of ``SourceSelector``.

    It ranks in ``on_train_start`` and copies the winner's values into the module in place. Prefer the two-call form
    where other callbacks look at the weights before that hook. A selection is made once: a run that goes on from a
    checkpoint, and a second ``fit``, keep their weights. An interruption leaves the weights as they were.

    Args:
        library: The library, or its path or URL.
        **options: Further arguments of :class:`~pge_lightning.select.SourceSelector`.

    Attributes:
        selection: The ranking and what was loaded, after training has started.

    Raises:
        MisconfigurationException: If the Trainer's strategy shards parameters, or another callback keeps a copy of the
            weights from before the selection.
        PGEError: As :meth:`~pge_lightning.select.SourceSelector.select`.

    Example::

        L.Trainer(callbacks=[SourceSelectionCallback(library="sources")]).fit(model, datamodule)
    """

    def __init__(self, library: str | Library, **options: Any) -> None:
        self.selector = SourceSelector(library, **options)
        self.selection: Selection | None = None
        self._source: str | None = None
        self._restored = False

    @property
    @override
    def state_key(self) -> str:
        encoder = self.selector.encoder
        return self._generate_state_key(
            library=self.selector.library.root, encoder=encoder if isinstance(encoder, str) else None
        )

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if stage != "fit":
            return
        check_strategy(trainer, type(self).__name__)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by Lightning's callback connector
            kind = type(callback).__name__
            if isinstance(callback, COPYING):
                raise MisconfigurationException(
                    f"SourceSelectionCallback is not supported with {kind}, which has copied the weights before they "
                    "are replaced, and may bring them back. Please select with `SourceSelector` before `trainer.fit`."
                )
            if isinstance(callback, LearningRateFinder):
                rank_zero_warn(
                    f"{kind} tunes the rate before SourceSelectionCallback replaces the weights. "
                    "Select with `SourceSelector` before `trainer.fit` to tune it on the selected ones."
                )

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        foreign = bool(trainer.ckpt_path) and not self._restored
        if self._source is not None or trainer.global_step > 0 or foreign:
            rank_zero_info("The weights stand as they are: a source was selected before, or training goes on.")
            return
        self.selector.verbose = self.selector.verbose and trainer.is_global_zero
        together = trainer.world_size > 1
        loader, context = agree(lambda: phase_context(trainer), together)
        with phase(trainer, f"{type(self).__name__}.select"):
            ranking = self.selector.rank(pl_module, loader, **context)
        with whole_or_not_at_all(pl_module):
            self.selection = self.selector.load_best(pl_module, ranking, together)
            self._source = self.selection.source

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"source": self._source}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._source, self._restored = state_dict.get("source"), True
