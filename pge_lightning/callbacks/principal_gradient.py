"""The callback that collects a source's signatures and registers it."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from pge_lightning.callbacks.phase import check_strategy, is_dev_run, logged_metrics, phase, phase_context
from pge_lightning.collect import Collector
from pge_lightning.collect.loss import LossFn
from pge_lightning.distributed import agree, on_rank_zero
from pge_lightning.encoder import HEAD, EncoderSpec, encoder_state, linear_head
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.library import Library
from pge_lightning.probe import Probe
from pge_lightning.restart import Factory
from pge_lightning.signature import Signature
from pge_lightning.source import Source, SourceFacts
from pge_lightning.summary import KIND, Summary, summarise

__all__ = ["PrincipalGradientCallback"]


class PrincipalGradientCallback(Callback):
    """Collect principal gradients before training, and register the source when its training ends.

    The phase runs once, in ``on_train_start``, on copies: the training that follows is bit-identical to one without
    the callback. A phase that is interrupted leaves everything as it was, and is run anew where training begins anew,
    also from a checkpoint written before the first step. A checkpoint written later brings its signatures along; a run
    that goes on from one without them collects nothing. Under ``fast_dev_run`` one tiny collection touches every line,
    and nothing is written.

    A callback stands for one source: in a second ``fit`` it neither collects nor registers again. Several callbacks
    with names of their own may share a Trainer; beside a :class:`SourceSelectionCallback` their order is of no matter,
    unless parts of the encoder are frozen: then select first, so that the signature is that of the loaded weights.

    Args:
        library: The library, or its path or URL.
        name: The source's name in the library.
        probe: The recipe, the name of a shipped one, or several of either.
        encoder: Names the transferred part: submodule, pattern over parameter names, or callable.
        loss_fn: Takes a copy of the module and a batch and returns a scalar loss; by default the module's own
            ``training_step`` gives it.
        factory: Builds a fresh module of the same kind, where re-initialisation needs help.
        classes: Number of classes, for the library's facts; by default ``num_classes`` of the data module.
        metric: Name of the logged metric to record; by default the one that checkpoints are chosen by.
        stop_after_collecting: Train nothing, and register the weights as they came: for a model trained elsewhere.
        overwrite: Whether a source of this name may be replaced.
        summary: Samples of which the library keeps a summary, for distances between data sets. By default none: a
            summary holds samples, though reduced, and some can be recognised.

    Attributes:
        signatures: What was collected in this process.
        source: The registered source, on rank zero after the training.

    Raises:
        MisconfigurationException: If the Trainer's strategy shards parameters, or stopping is asked for together
            with ``min_epochs`` or ``min_steps``.
        ValueError: If `summary` is below 0, or a probe's name is unknown.
        PGEError: If the library is not writable or holds the name, before any work starts; else as
            :class:`~pge_lightning.collect.Collector`.

    Example::

        trainer = L.Trainer(callbacks=[PrincipalGradientCallback(library="sources", name="mnist")])
        trainer.fit(model, datamodule)
    """

    def __init__(
        self,
        library: str | Library,
        name: str,
        probe: str | Probe | Sequence[str | Probe] = "default",
        encoder: EncoderSpec = None,
        loss_fn: LossFn | None = None,
        factory: Factory | None = None,
        classes: int | None = None,
        metric: str | None = None,
        stop_after_collecting: bool = False,
        overwrite: bool = False,
        summary: int = 0,
    ) -> None:
        if summary < 0:
            raise ValueError(f"Expected `summary` to be 0 or a number of samples, but got {summary}.")
        self.library = library if isinstance(library, Library) else Library(library)
        self.name = name
        self.probes = [Probe.of(item) for item in ([probe] if isinstance(probe, (str, Probe)) else probe)]
        self.encoder, self.loss_fn, self.factory = encoder, loss_fn, factory
        self.classes, self.metric = classes, metric
        self.stop_after_collecting, self.overwrite = stop_after_collecting, overwrite
        self.summary = summary
        self.signatures: list[Signature] = []
        self.source: Source | None = None
        self._files: list[str] = []
        self._extras: dict[str, str] = {}
        self._summary: Summary | None = None
        self._facts: dict[str, Any] = {}
        self._frozen: list[str] = []
        self._begin: float | None = None

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(library=self.library.root, name=self.name)

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        if stage != "fit":
            return
        check_strategy(trainer, type(self).__name__)
        if self.stop_after_collecting and (trainer.min_epochs or trainer.min_steps):
            raise MisconfigurationException(
                "`stop_after_collecting` is not supported with `min_epochs` or `min_steps`. Please leave them unset."
            )
        if not is_dev_run(trainer) and not self._files:
            on_rank_zero(self._check_library, trainer.world_size > 1)

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if not self._files and trainer.global_step > 0:
            rank_zero_warn(
                f"Source '{self.name}' is not collected: this run goes on from a checkpoint written without it."
            )
        elif not self._files:
            try:
                with phase(trainer, f"{type(self).__name__}.collect"):
                    self._collect(trainer, pl_module)
            except BaseException:
                self._forget(trainer)
                raise
        self._begin = time.perf_counter()
        trainer.should_stop = trainer.should_stop or self.stop_after_collecting

    @override
    def on_fit_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        if self._begin is None:
            rank_zero_warn(f"Source '{self.name}' is not registered: without batches or epochs there was no training.")
        if self._files:
            self._facts["seconds_training"] += self._elapsed()
        self._begin = None
        if not trainer.is_global_zero or not self._files or self.source is not None:
            return
        facts = SourceFacts(**self._facts, **self._metric(trainer), created=datetime.now(timezone.utc).isoformat())
        try:
            state = encoder_state(pl_module, self.encoder)
            weights = {name: value for name, value in state.items() if name not in self._frozen}
            extras = self._extras | self._head(pl_module)
            self.source = self.library.register(self.name, weights, facts, self._files, self.overwrite, extras)
        except (PGEError, ValueError) as error:
            rank_zero_warn(f"Source '{self.name}' is trained, but could not be registered: {error}")
            return
        rank_zero_info(f"Source '{self.name}' is registered in '{self.library.root}'.")

    @override
    def state_dict(self) -> dict[str, Any]:
        seconds = self._facts.get("seconds_training", 0.0) + self._elapsed()
        facts = {**self._facts, "seconds_training": seconds}
        extras = dict(self._extras)
        return {"files": list(self._files), "extras": extras, "facts": facts, "frozen": list(self._frozen)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._files = list(state_dict.get("files", []))
        self._extras = dict(state_dict.get("extras", {}))
        self._facts = dict(state_dict.get("facts", {}))
        self._frozen = list(state_dict.get("frozen", []))

    def _elapsed(self) -> float:
        """Seconds since the training started or went on."""
        return 0.0 if self._begin is None else time.perf_counter() - self._begin

    def _check_library(self) -> None:
        self.library.check_name(self.name, self.overwrite)
        self.library.check_writable()

    def _collect(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        loader, context = agree(lambda: phase_context(trainer), trainer.world_size > 1)
        options = {"encoder": self.encoder, "loss_fn": self.loss_fn, "factory": self.factory, **context}
        probes = [_tiny(probe, loader) for probe in self.probes] if is_dev_run(trainer) else self.probes
        collectors = [Collector(pl_module, loader, probe=probe, **options) for probe in probes]
        plan = [(collector, budget) for collector in collectors for budget in collector.budgets]
        self.signatures = [collector.collect(budget) for collector, budget in plan]
        # A probe without labels may read other samples than the training does.
        chosen = next((collector for collector in collectors if collector.batches is loader), collectors[0])
        self._summary = summarise(chosen.pool, chosen.batches, self.summary) if self.summary else None
        seconds = sum(signature.seconds for signature in self.signatures)
        told = ", ".join(f"'{signature.probe.name}' at {signature.budget} samples" for signature in self.signatures)
        rank_zero_info(f"Collected source '{self.name}' in {seconds:.1f} s: {told}.")
        if is_dev_run(trainer):
            return
        self._facts = {
            "encoder": str(self.encoder),
            "classes": self.classes or getattr(context["datamodule"], "num_classes", None),
            "samples": len(collectors[0].pool),
            "seconds_collecting": seconds,
            "seconds_training": 0.0,
        }
        self._frozen = list(self.signatures[0].frozen)
        # Last: a checkpoint written meanwhile, as on Slurm's signal, must not say that all is collected.
        self._extras, self._files = on_rank_zero(self._store, trainer.world_size > 1)

    def _forget(self, trainer: "pl.Trainer") -> None:
        """After an interruption nothing has been collected, and the library holds what it held."""
        stored, self.signatures, self._files, self._facts = self.signatures, [], [], {}
        summary, self._summary, self._extras = self._summary, None, {}
        if trainer.is_global_zero and not is_dev_run(trainer):
            with suppress(ArtifactError):  # the interruption is what the user must hear of
                for signature in stored:
                    self.library.drop_signature(self.name, signature)
                if summary is not None:
                    self.library.drop_extra(self.name, KIND, summary.tensors())

    def _store(self) -> tuple[dict[str, str], list[str]]:
        """What lies in the library now: extra tensors by their kind, and signatures."""
        tensors = {KIND: self._summary.tensors()} if self._summary is not None else {}
        extras = {kind: self.library.put_extra(self.name, kind, values) for kind, values in tensors.items()}
        return extras, [self.library.put_signature(self.name, signature) for signature in self.signatures]

    def _head(self, pl_module: "pl.LightningModule") -> dict[str, str]:
        """The file of a head that is one linear layer, for scores of a source's predictions."""
        head = linear_head(pl_module, self.encoder)
        return {HEAD: self.library.put_extra(self.name, HEAD, head)} if head else {}

    def _metric(self, trainer: "pl.Trainer") -> dict[str, Any]:
        """The recorded metric, and all others that were logged."""
        logged = logged_metrics(trainer)
        chosen = self.metric or getattr(trainer.checkpoint_callback, "monitor", None)
        known = chosen if chosen in logged else None
        return {"metric": known, "value": logged[known] if known else None, "extra": {"metrics": logged}}


def _tiny(probe: Probe, data: Any) -> Probe:
    """A probe of one step on one batch of the training data, to touch every line."""
    sizes = [getattr(loader, "batch_size", None) or 2 for loader in getattr(data, "flattened", [data])]
    size = min(probe.batch_size, *sizes)
    restarts = probe.restarts and min(probe.restarts, 2)
    return replace(probe, restarts=restarts, steps=1, batch_size=size, budgets=(size,) if probe.budgets else ())
