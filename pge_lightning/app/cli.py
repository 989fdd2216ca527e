"""The command's entry: dispatch, errors that a shell user can read, and no chatter."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import hydra
import lightning as L
from hydra.errors import CompactHydraException, InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pge_lightning.app import sources, tasks
from pge_lightning.errors import PGEError

__all__ = ["TaskError", "main", "run"]

READABLE = (
    PGEError,
    MisconfigurationException,
    InstantiationException,
    OmegaConfBaseException,
    ValueError,
    OSError,
    ImportError,
)
LIGHTNING = str(Path(L.__file__).parent)


class TaskError(CompactHydraException):
    """A task that could not be done; Hydra prints its message without a traceback, and exits with 1."""


def evaluate(cfg: DictConfig) -> float | None:
    """Fine-tune from every source and compare with the ranking."""
    from pge_lightning.app.evaluate import evaluate as task  # plots and statistics only this task needs

    return task(cfg)


TASKS: dict[str, Callable[[DictConfig], float | None]] = {
    "collect": tasks.collect,
    "rank": tasks.rank,
    "finetune": tasks.finetune,
    "library": sources.library,
    "evaluate": evaluate,
}


def run(cfg: DictConfig) -> float | None:
    """Do what ``cfg.task`` says; an application of its own calls this from its ``hydra.main``.

    Args:
        cfg: The whole configuration.

    Returns:
        The metric for sweepers, if the task has one.

    Raises:
        TaskError: If the task cannot be done; its message says what was expected and the cure.
    """
    _quieten()
    try:
        return _task(cfg)(cfg)
    except READABLE as error:
        raise TaskError(str(error)) from error


def main() -> None:
    """The command `pge`."""
    hydra.main(version_base="1.3", config_path="pkg://pge_lightning.conf", config_name="pge")(run)()


def _task(cfg: DictConfig) -> Callable[[DictConfig], float | None]:
    name = None if OmegaConf.is_missing(cfg, "task") else cfg.task
    if name not in TASKS:
        raise ValueError(f"Expected `task` to be one of {', '.join(TASKS)}, but got {name}. Pass `task=NAME`.")
    return TASKS[name]


def _quieten() -> None:
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_not_lightnings_own)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # between lightning 2.6 and torch 2.13


def _not_lightnings_own(record: logging.LogRecord) -> bool:
    """Let the news of callbacks through, but not Lightning's notes on hardware and seeds."""
    return record.levelno > logging.INFO or not record.pathname.startswith(LIGHTNING)
