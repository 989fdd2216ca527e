"""The phase before the first training batch: what both callbacks need of a Trainer."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from pge_lightning.isolation import borrowed, isolated_randomness, undone

__all__ = ["check_strategy", "is_dev_run", "logged_metrics", "phase", "phase_context"]


def check_strategy(trainer: "pl.Trainer", owner: str) -> None:
    """Refuse strategies that shard or hide the parameters.

    Raises:
        MisconfigurationException: If the strategy is neither on a single device nor DDP.
    """
    # The last two are made from DDP, but shard parameters or go without torch.distributed.
    supported = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
    if not supported or isinstance(trainer.strategy, (DeepSpeedStrategy, XLAStrategy)):
        raise MisconfigurationException(
            f"{owner} is not supported with {type(trainer.strategy).__name__}, which does not keep whole parameters on "
            "every device. Please collect or select on a single device before `trainer.fit`, with `collect_signature` "
            "or `SourceSelector`."
        )


def is_dev_run(trainer: Any) -> bool:
    """Whether the Trainer only touches every line once."""
    return bool(trainer.fast_dev_run)


def logged_metrics(trainer: "pl.Trainer") -> dict[str, float]:
    """All scalars that were logged, by their names."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}


@contextmanager
def phase(trainer: Any, name: str) -> Generator[None, None, None]:
    """Profile the phase, and keep what it does away from the user's loggers and data module.

    A training step may send something straight to a logger, and a data module's transfer hooks may draw or count.
    """
    loggers = trainer.loggers

    def put_back() -> None:
        trainer.loggers = loggers

    with undone(put_back), isolated_randomness(), borrowed(getattr(trainer, "datamodule", None)):
        trainer.loggers = [DummyLogger() for _ in loggers]
        with trainer.profiler.profile(f"[Callback]{name}"):
            yield


def _stop_if_terminated(trainer: "pl.Trainer") -> None:
    """Lightning's handler of SIGTERM leaves a flag; it looks at it between batches, so we look between steps."""
    if trainer.received_sigterm:
        raise SIGTERMException


def _attach(trainer: "pl.Trainer", clone: nn.Module) -> None:
    if isinstance(clone, pl.LightningModule):
        clone.trainer = trainer


def _check_stream(dataset: Any) -> None:
    """Refuse a stream that goes on where it stopped: training would miss what the phase has read of it."""
    held = [name for name, value in getattr(dataset, "__dict__", {}).items() if isinstance(value, Iterator)]
    if isinstance(dataset, IterableDataset) and held:
        raise MisconfigurationException(
            f"Collecting is not supported with {type(dataset).__name__}, whose `{held[0]}` is an iterator that cannot "
            "be put back. Please make it anew in `__iter__`, or call `collect_signature` or `SourceSelector` with "
            "other batches before `trainer.fit`."
        )


def phase_context(trainer: "pl.Trainer") -> tuple[DataLoader[Any], dict[str, Any]]:
    """The processed training loader, and what a collector needs to know of the Trainer.

    Returns:
        The loader, and further arguments of :class:`~pge_lightning.collect.Collector`.

    Raises:
        MisconfigurationException: If there is not exactly one loader, or it reads a stream that cannot start anew.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader):
        raise MisconfigurationException(
            f"Collecting is not supported with a {type(loader).__name__} of training loaders. Please train with one "
            "DataLoader, or call `collect_signature` with the batches that should count."
        )
    _check_stream(loader.dataset)
    prepare: Callable[[nn.Module], None] = partial(_attach, trainer)
    batches = trainer.num_training_batches
    return loader, {
        "limit": int(batches) if batches != float("inf") else None,
        "datamodule": getattr(trainer, "datamodule", None),
        "distributed": trainer.world_size > 1,
        "prepare": prepare,
        "progress": False,
        "check": partial(_stop_if_terminated, trainer),
    }
