"""Features: what the encoders of sources make of the target's samples, computed once per source."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pge_lightning.collect.starts import Starts
from pge_lightning.collect.warmup import place
from pge_lightning.encoder import HEAD, encoder_parameters
from pge_lightning.encoder_features import FeaturesFn, features_of, labels_of
from pge_lightning.errors import PGEError, SilentError
from pge_lightning.isolation import borrowed, derive_seed, isolated_copy, isolated_randomness, plain
from pge_lightning.load import load_encoder
from pge_lightning.probe import Probe
from pge_lightning.samples import sample_pool
from pge_lightning.source import Source

__all__ = ["Extractor", "Features", "LabelsError"]

BATCH_SIZE = 64


class LabelsError(SilentError):
    """The target has no labels that an estimator can work with, whatever the source."""


@dataclass(frozen=True)
class Features:
    """What one encoder makes of the target's samples.

    Args:
        features: float32 ``[samples, d]``, on the CPU.
        labels: ``[samples, ...]``, on the CPU; ``None`` where batches hold inputs only.
        probabilities: What the source's own head makes of the features, ``[samples, source classes]``; ``None`` where
            the library holds no such head.
    """

    features: Tensor
    labels: Tensor | None
    probabilities: Tensor | None = None

    @property
    def classes(self) -> Tensor:
        """The labels as class numbers, int64 ``[samples]``.

        Raises:
            LabelsError: If they are none.
        """
        labels = self.labels
        if labels is None or labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
            got = "none" if labels is None else f"{labels.dtype} of shape {list(labels.shape)}"
            raise LabelsError(
                f"Expected one class number per sample, as the second entry of a batch or under 'labels', but got "
                f"{got}. Choose an estimator that needs no classes, such as the gap."
            )
        return labels.long()


class Extractor:
    """Computes features of the same samples for one source after the other, and keeps them.

    The samples stay in memory while sources are compared.

    Args:
        model: The model to be fine-tuned; only copies of it are touched.
        data: A loader or batches, as for :class:`~pge_lightning.collect.Collector`.
        sources: Name to the opened source.
        samples: Most samples to consider; more are thinned out evenly.
        features: Takes a copy of the model and a batch and returns ``[batch, d]``; by default what leaves the encoder.
        options: The collector's.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        sources: Mapping[str, Any],
        samples: int,
        features: FeaturesFn | None,
        options: Mapping[str, Any],
    ) -> None:
        self.model, self.sources, self.features, self.options = model, sources, features, options
        probe = Probe("features", restarts=1, steps=1, batch_size=1, budgets=(samples,))
        pool = sample_pool(data, probe, options.get("limit"), bool(options.get("distributed")))
        chosen = torch.linspace(0, len(pool) - 1, min(len(pool), samples)).round().int().tolist()
        with isolated_randomness(derive_seed(0, "features")), borrowed(data):
            parts = range(0, len(chosen), BATCH_SIZE)
            self.batches = [pool.batch(chosen[start : start + BATCH_SIZE]) for start in parts]
        self._known: dict[tuple[str | None, int], Features | Exception] = {}

    def __call__(self, source: str | None, draw: int = 0) -> Features:
        """The features of a source.

        Args:
            source: Its name; ``None`` for a re-initialised encoder.
            draw: Which re-initialisation.

        Returns:
            Features, labels, and what the source's head says.

        Raises:
            Exception: Whatever goes wrong with this source, each time it is asked for.
        """
        key = source, draw
        if key not in self._known:
            try:
                self._known[key] = self._compute(source, draw)
            except Exception as error:  # of any kind: forward is the user's
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, Exception):
            raise found
        return found

    def _compute(self, source: str | None, draw: int) -> Features:
        opened = None if source is None else self.sources[source]
        with isolated_randomness(derive_seed(0, "features")), torch.no_grad():
            model = self._fresh(draw) if opened is None else self._loaded(opened)
            # Labels leave a batch through the same hooks as inputs.
            found = [self._of_batch(model, batch) for batch in self.batches]
        features = torch.cat([values for values, _ in found])
        if not features.isfinite().all():
            raise PGEError(
                f"Expected finite features, but {int((~features.isfinite()).sum())} of {features.numel()} are not. "
                "Train the source again, with a lower learning rate."
            )
        labels = [label for _, label in found]
        known = [label for label in labels if label is not None]
        whole = torch.cat(known) if len(known) == len(labels) else None
        return Features(features, whole, None if opened is None else _probabilities(opened, features))

    def _of_batch(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
        device = next(model.parameters()).device
        placed = place(model, batch, device, self.options.get("datamodule"))
        labels = labels_of(placed)
        features = (
            self.features(model, placed)
            if self.features is not None
            else features_of(model, self.options.get("encoder"), placed)
        )
        return features.detach().float().cpu(), labels.detach().cpu() if isinstance(labels, Tensor) else None

    def _loaded(self, source: Source | Exception) -> nn.Module:
        if isinstance(source, Exception):
            raise source
        model = self._prepared(isolated_copy(self.model))
        report = load_encoder(model, source.load_weights())
        state = plain(model).state_dict(keep_vars=True)
        loaded = {id(state[name]) for name in report.loaded}  # of a tied one, either name will do
        whole = encoder_parameters(model, self.options.get("encoder"))
        lacking = [name for name, unit in whole.items() if id(unit) not in loaded]
        if lacking:  # what the model came with would be judged in their place
            raise PGEError(
                f"Expected a source that holds the whole encoder, but {len(lacking)} of its parameters are missing or "
                f"of another shape, such as '{lacking[0]}'. Build the model as the source was built."
            )
        return model.eval()

    def _fresh(self, draw: int) -> nn.Module:
        starts = Starts(self.model, Probe("features"), self.options.get("encoder"), bool(self.options.get("thaw")))
        starts.check(self.options.get("factory"), self._run_once)
        model = self._prepared(starts.make(draw, "features"))
        _settle(model.eval(), (self._of_batch(model, batch) for batch in self.batches))
        return model.eval()

    def _run_once(self, model: nn.Module) -> None:
        """Give lazy parts their shapes."""
        self._of_batch(model, self.batches[0])

    def _prepared(self, model: nn.Module) -> nn.Module:
        if (prepare := self.options.get("prepare")) is not None:
            prepare(model)
        device = self.options.get("device") or next(self.model.parameters()).device
        return model.to(device)


def _settle(model: nn.Module, passes: Iterable[Any]) -> None:
    """Let batch norms that no training has seen take mean and spread from the samples."""
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm) and part.track_running_stats]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if norms:
        for _ in passes:
            pass


def _probabilities(source: Source, features: Tensor) -> Tensor | None:
    """What a source's linear head makes of features."""
    head = source.load_extra(HEAD)
    if head is None or head["weight"].shape[1] != features.shape[1]:
        return None
    return torch.softmax(nn.functional.linear(features, head["weight"], head.get("bias")), dim=1)
