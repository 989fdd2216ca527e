"""Stand-in: a Trainer for copies of a module that has none yet, so that its training step may look at one."""

import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerStatus

__all__ = ["stand_in_trainer"]


@contextmanager
def _in_silence() -> Generator[None]:
    """Keep Lightning from reporting on a Trainer that the user did not make."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def stand_in_trainer() -> "pl.Trainer":
    """A Trainer at its first training step, on one CPU, that logs and writes nothing.

    Returns:
        A Trainer to be read, not run.

    >>> trainer = stand_in_trainer()
    >>> trainer.training, trainer.global_step, trainer.current_epoch, trainer.loggers
    (True, 0, 0, [])
    """
    with _in_silence():
        # Of its own environment, because a cluster's would insist on the number of its tasks.
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            plugins=[LightningEnvironment()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    trainer.state.fn, trainer.state.status = TrainerFn.FITTING, TrainerStatus.RUNNING
    trainer.state.stage = RunningStage.TRAINING
    return trainer
