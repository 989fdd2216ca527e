"""`pge task=evaluate`: rank as the selector does, really fine-tune from everything, and compare the two."""

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product

import pandas as pd
import torch
from omegaconf import DictConfig
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pge_lightning.app.cells import Cell, records_of
from pge_lightning.app.report import report
from pge_lightning.app.study import TRAINED, Study, start_study
from pge_lightning.app.work import Worker
from pge_lightning.records import Records

__all__ = ["evaluate"]

# Pieces of work differ in length: an estimate of the time left from the last half minute would jump.
MEMORY_SECONDS = 600.0


def evaluate(cfg: DictConfig) -> float | None:
    """Train the sources that are missing, fine-tune from every one and from scratch, rank, and report.

    Every finished piece of work is written down at once: the same command goes on where a run was cut off. One that
    fails is reported with its reason, and tried again by the next run. A shard has a share of the sources, and leaves
    ranking and reporting to a run that finds what all shards did.

    Args:
        cfg: The whole configuration; see the node ``evaluate``.

    Returns:
        Mean weighted tau of the first estimator over targets, in [-1, 1]; ``None`` where it is not defined, and of a
        shard. Where encoders are trained and frozen, of those that are named first.

    Raises:
        PGEError: If a source was trained here with other settings (before any work starts), or nothing succeeded.
        ValueError: If the configuration is wrong; nothing has been computed then.
    """
    study = start_study(cfg)
    with _threads(cfg.evaluate.threads), _muted(), _progress(study) as progress:
        worker = Worker(study, progress)
        worker.check_sources()
        for source in study.made:
            worker.train(source)
        tuned = {encoder: _fine_tune(worker, encoder) for encoder in study.encoders}
        if study.shards > 1:
            progress.console.print(_told(study, tuned), highlight=False)
            return None
        history = {encoder: _history(study, encoder, cells) for encoder, cells in tuned.items()}
        ranked: dict[str, list[pd.DataFrame]] = {encoder: [] for encoder in study.encoders}
        for target, each, encoder in product(study.targets, study.estimators, study.encoders):
            ranked[encoder].append(worker.rank(target, each, history[encoder]))
    values = [report(study, encoder, cells, pd.concat(ranked[encoder])) for encoder, cells in tuned.items()]
    return values[0]


def _fine_tune(worker: Worker, encoder: str) -> list[Cell]:
    pairs = product(worker.study.targets, worker.study.seeds)
    return [cell for target, seed in pairs for cell in worker.fine_tune(target, seed, encoder=encoder)]


def _told(study: Study, tuned: Mapping[str, Sequence[Cell]]) -> str:
    """What a shard says in the end."""
    cells = [cell for part in tuned.values() for cell in part]
    failed = sum(bool(cell.reason) for cell in cells)
    return (
        f"Shard {study.shard} (of 0 to {study.shards - 1}) has done its {len(cells)} fine-tunings, of which {failed} "
        "failed. Shards neither rank nor report: when all are done, the same command without shards does."
    )


def _history(study: Study, encoder: str, tuned: Sequence[Cell]) -> Records:
    """What estimators may learn from: these fine-tunings, and what is on record of sources that were there before."""
    past = study.library.records() if encoder == TRAINED and not study.made else ()
    return Records([*past, *records_of(tuned, study.cfg.evaluate.metric)])


def _progress(study: Study) -> Progress:
    """One bar; none where several processes would draw theirs at once."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(
        *columns,
        TextColumn("{task.description}"),
        speed_estimate_period=MEMORY_SECONDS,
        transient=True,
        disable=study.shards > 1,
    )


@contextmanager
def _threads(count: int | None) -> Generator[None, None, None]:
    """Let PyTorch use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _muted() -> Generator[None, None, None]:
    """Keep the news of single trainings from between the lines of the progress."""
    loggers = [logging.getLogger(f"lightning.{part}.utilities.rank_zero") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
