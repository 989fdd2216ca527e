"""Runs of a kind of module, with and without the callback, and all that they leave behind."""

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from pge_lightning.callbacks import PrincipalGradientCallback
from pge_lightning.probe import Probe
from trainer_helpers import QUIET, frozen, randomness
from zoo.kind import BATCH, Kind

PROBE = Probe(name="tiny", restarts=2, steps=2, batch_size=BATCH, budgets=(2 * BATCH,))
PLAIN = (int, float, str, bytes, bool, type(None))


def content(value: Any, depth: int = 8) -> Any:
    """The values in an object, and of what has none the type alone."""
    if isinstance(value, (Tensor, np.ndarray, torch.Generator, np.random.Generator, random.Random)):
        return frozen(value)
    if isinstance(value, PLAIN) or depth == 0:
        return value if isinstance(value, PLAIN) else None
    if isinstance(value, dict):
        return {str(key): content(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [content(item, depth - 1) for item in value]
    if callable(as_dict := getattr(value, "to_dict", None)) and not isinstance(value, nn.Module):
        return content(as_dict(), depth - 1)
    return type(value).__name__


def everything(module: nn.Module) -> Any:
    """All attributes of a module and its parts: weights, buffers of any kind, modes, counters, lists."""
    parts = {}
    for path, part in module.named_modules():
        # Hooks are numbered throughout the process.
        kept = {name: list(value.values()) if name.endswith("_hooks") else value for name, value in vars(part).items()}
        parts[path] = content(kept)
    return parts, [(unit.requires_grad, content(unit.grad)) for unit in module.parameters()]


class Recorder(pl.Callback):
    """Remembers the batches that training saw."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(content(batch))


def fit(kind: Kind, folder: Path, seed: int = 0, callback: pl.Callback | None = None) -> tuple[nn.Module, Any]:
    """Train a module from fixed random states.

    Returns:
        The module, and what its training leaves behind, by name.
    """
    pl.seed_everything(1, verbose=False)
    module, data, recorder = kind.build(3), kind.data(seed, 3), Recorder()
    callbacks = [recorder, *([callback] if callback else [])]
    flags = {**QUIET, "max_epochs": 1, "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(**flags, default_root_dir=str(folder), callbacks=callbacks)
    trainer.fit(module, data)
    module = trainer.lightning_module
    return module, {
        "module": everything(module),
        "optimizers": content([optimizer.state_dict() for optimizer in trainer.optimizers]),
        "metrics": content(dict(trainer.callback_metrics)),
        "progress": content(trainer.fit_loop.state_dict()),
        "global_step": trainer.global_step,
        "batches": recorder.seen,
        "randomness": content(randomness()),
    }


def registering(kind: Kind, library: Path, name: str) -> PrincipalGradientCallback:
    options = {"probe": PROBE, "encoder": kind.encoder, "loss_fn": kind.loss_fn}
    return PrincipalGradientCallback(library=str(library), name=name, **options)
