"""The phase before the first training batch: what both callbacks need of a Trainer."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from pge_lightning.distributed import terminated
from pge_lightning.isolation import borrowed, isolated_randomness, undone

__all__ = ["check_strategy", "is_dev_run", "logged_metrics", "phase", "phase_context"]


def check_strategy(trainer: "pl.Trainer", owner: str) -> None:
    """Refuse strategies that shard or hide the parameters, and those that nothing is known of.

    Raises:
        MisconfigurationException: If the strategy is neither on a single device nor DDP.
    """
    # The last two are made from DDP, but shard parameters or go without torch.distributed.
    supported = isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy))
    if not supported or isinstance(trainer.strategy, (DeepSpeedStrategy, XLAStrategy)):
        raise MisconfigurationException(
            f"{owner} is not supported with {type(trainer.strategy).__name__}, which is not known to keep whole "
            "parameters in every process. Please collect or select with the unsharded module before `trainer.fit`, "
            "with `collect_signature` or `SourceSelector`; `load_encoder` loads a choice into a module that is sharded."
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
    if trainer.received_sigterm or terminated():
        raise SIGTERMException


def _thaws(trainer: Any) -> bool:
    """Whether what is frozen now will be trained later."""
    return any(isinstance(callback, BaseFinetuning) for callback in trainer.callbacks)


def _attach(trainer: "pl.Trainer", clone: nn.Module) -> None:
    if isinstance(clone, pl.LightningModule):
        clone.trainer = trainer


def _training_data(trainer: Any) -> Any:
    """The processed training loader, or several of them combined as the Trainer does."""
    loaders = trainer.train_dataloader
    if not isinstance(loaders, (dict, list, tuple)):
        return loaders
    # The Trainer makes one of its own where it was given none, and shows neither.
    own = getattr(trainer.fit_loop, "_combined_loader", None)
    combined = CombinedLoader(loaders, getattr(own, "_mode", "max_size_cycle"))
    combined.limits = getattr(own, "limits", None)
    return combined


def phase_context(trainer: "pl.Trainer") -> tuple[Any, dict[str, Any]]:
    """The processed training data, and what a collector needs to know of the Trainer.

    Returns:
        A loader, or a ``CombinedLoader`` of several with a limit for each; and further arguments of
        :class:`~pge_lightning.collect.Collector`.

    Raises:
        MisconfigurationException: If the training data are an iterator, which reading would use up.
    """
    data = _training_data(trainer)
    for loader in data.flattened if isinstance(data, CombinedLoader) else [data]:
        if isinstance(loader, Iterator) and not hasattr(loader, "__dict__"):
            raise MisconfigurationException(
                f"Collecting is not supported with a {type(loader).__name__} as training data, which can be read only "
                "once. Please train with a DataLoader, or call `collect_signature` or `SourceSelector` with other "
                "batches before `trainer.fit`."
            )
    prepare: Callable[[nn.Module], None] = partial(_attach, trainer)
    batches = trainer.num_training_batches
    unlimited = isinstance(data, CombinedLoader) or batches == float("inf")
    return data, {
        "limit": None if unlimited else int(batches),
        "datamodule": getattr(trainer, "datamodule", None),
        "distributed": trainer.world_size > 1,
        "prepare": prepare,
        "progress": False,
        "check": partial(_stop_if_terminated, trainer),
        "thaw": _thaws(trainer),
    }
