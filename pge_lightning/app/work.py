"""The work of an evaluation, piece by piece: none is done twice, and none that fails ends the run."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone

import lightning as L
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress

from pge_lightning.advise import with_decision
from pge_lightning.app.build import build_data, build_encoder, build_selector
from pge_lightning.app.cells import Cell, CellLog
from pge_lightning.app.frozen import FrozenEncoder
from pge_lightning.app.study import FROZEN, TRAINED, Contestant, Study, settings_of
from pge_lightning.app.tasks import SCRATCH, collect, fit_and_test, seeded_model
from pge_lightning.decide import Decision
from pge_lightning.errors import PGEError
from pge_lightning.estimators.target import Target
from pge_lightning.load import load_encoder
from pge_lightning.rank import rank_sources
from pge_lightning.records import Records

__all__ = ["Worker"]

TRANSFER = "transfer"


class Worker:
    """Does what a study asks for, unless its logs say that it was done.

    Args:
        study: The evaluation.
        progress: Shows what is going on.

    Attributes:
        logs: What was done before with an encoder that is trained or frozen, and where to write down what is done now.
    """

    def __init__(self, study: Study, progress: Progress) -> None:
        self.study, self.progress = study, progress
        shard = None if study.shards == 1 else study.shard
        self.logs = {encoder: CellLog(study.folder(encoder), shard) for encoder in (TRAINED, *study.encoders)}
        fits = sum(len(study.starts(target)) for target in study.targets) * len(study.seeds)
        ranks = len(study.targets) * len(study.estimators) if study.shards == 1 else 0
        self._left = len(study.made) + len(study.encoders) * (fits + ranks)
        self._bar = progress.add_task("", total=self._left)
        self._data: tuple[object, L.LightningDataModule] | None = None
        self._target: tuple[object, Target] | None = None

    def check_sources(self) -> None:
        """Refuse to go on with a source that this evaluation trained with other settings.

        Raises:
            PGEError: If there is one, and it may not be replaced.
        """
        stale = [name for name in self.study.made if self._is_there(name) and not self._is_current(name)]
        if stale and not self.study.cfg.library.overwrite:
            raise PGEError(
                f"Expected the sources in '{self.study.library.root}' to be trained with the settings and probes of "
                f"this evaluation, but {', '.join(stale)} were trained with others. "
                "Pass `library.overwrite=true` to train them again, or set another `library.root`."
            )

    def train(self, name: str) -> Cell:
        """Train and register a source, unless the library holds it.

        Args:
            name: Its name.

        Returns:
            What came of it; the value is the source's own metric.
        """
        cell = Cell("", name, self.study.cfg.seed or 0, self._source_settings(name))
        if self._is_there(name) and self._is_current(name):
            return self._skip(cell)
        job = self.study.source_job(name)
        job.library.overwrite = True  # what may not be replaced was refused before
        log = self.logs[TRAINED]
        cell = self._do(f"training source '{name}'", cell, log, lambda: collect(job, self.study.probes))
        if not cell.reason:
            own = "" if cell.value is None else f", {job.optimized_metric} {cell.value:.3f}"
            self.progress.console.print(f"Trained source '{name}' in {cell.seconds:.0f} s{own}.", highlight=False)
        return cell

    def fine_tune(
        self, target: str, seed: int, sources: Sequence[str] | None = None, encoder: str = TRAINED
    ) -> list[Cell]:
        """Fine-tune on a target, but for what the log knows.

        Args:
            target: Its name.
            seed: Seed of the head's start and of the order of the batches, the same for all of them.
            sources: What to start from; by default all that is this run's: every source, and scratch.
            encoder: Whether the encoder is trained, too, or frozen.

        Returns:
            What came of it, one cell for each.
        """
        left = self._left
        chosen = self.study.starts(target) if sources is None else sources
        job = self.study.target_job(target, seed, encoder)  # the same from wherever it starts
        cells = [self._fine_tune(job, target, seed, source, encoder) for source in chosen]
        earlier = f", {left - self._left} of them in an earlier run" if left > self._left else ""
        seconds = f" in {sum(cell.seconds for cell in cells):.0f} s"
        times = f"{len(cells)} time{'s' * (len(cells) > 1)}"
        text = f"Fine-tuned{_head(encoder)} '{target}' {times} with seed {seed}{seconds}{earlier}."
        if cells:  # a shard may have nothing for this target
            self.progress.console.print(text, highlight=False)
        return cells

    def rank(self, target: str, contestant: Contestant, records: Records) -> pd.DataFrame:
        """Rank the sources for a target.

        Args:
            target: Its name.
            contestant: How to rank.
            records: Finished fine-tunings; those of this target are left out.

        Returns:
            Columns target, estimator, budget, source, rank, estimate, score (higher for better), advice (transfer or
            scratch, the same in all rows; empty where there is none), status and reason; every row has a reason where
            nothing could be ranked.
        """
        self.progress.update(self._bar, description=f"ranking for '{target}' by {contestant.name}")
        try:
            ready = self._ready(target, contestant)
            ready.records = records.without_target(target)
            ranking = with_decision(ready, rank_sources(ready, contestant.estimator))
            frame = ranking.to_pandas().rename(columns={ranking.estimator: "estimate"})
            details = ranking.details.get(ranking.estimator, {})
            frame = frame.assign(score=frame["source"].map(ranking.scores()), budget=details.get("budget"))
            frame = frame.assign(advice=_advice(ranking.decision))
        except Exception as error:  # one target that cannot be ranked must not end the run
            sources = self.study.candidates(target)[:-1]
            frame = pd.DataFrame({
                "source": sources,
                "estimate": math.nan,
                "status": "failed",
                "reason": _reason(error),
            })
            frame = frame.assign(score=math.nan, advice="")
        self.progress.advance(self._bar)
        return frame.assign(target=target, estimator=contestant.name)

    def _ready(self, target: str, contestant: Contestant) -> Target:
        """A target as a contestant sees it, opened once for all that follow and see it alike."""
        key = target, contestant.data
        if self._target is None or self._target[0] != key:
            job = self.study.ranking_job(target, contestant)
            datamodule = build_data(job.data)
            self._target = key, build_selector(job).target(seeded_model(job, datamodule), datamodule)
        return self._target[1]

    def _fine_tune(self, job: DictConfig, target: str, seed: int, source: str, encoder: str) -> Cell:
        digest = ""
        with suppress(PGEError):  # a source that is not there fails when it is loaded
            digest = "" if source == SCRATCH else self.study.library.open(source).weights_file.sha256
        more = () if encoder == TRAINED else (encoder,)
        cell, log = Cell(target, source, seed, settings_of(job, digest, *more)), self.logs[encoder]
        if known := log.find(cell):
            return self._skip(known)
        text = f"fine-tuning{_head(encoder)} '{target}' from '{source}'"
        return self._do(text, cell, log, lambda: self._fit(job, source, encoder))

    def _fit(self, job: DictConfig, source: str, encoder: str) -> float:
        datamodule = self._open_data(job.data)
        model = seeded_model(job, datamodule)
        if source != SCRATCH:
            load_encoder(model, self.study.library.open(source).load_weights())
        callbacks = [FrozenEncoder(build_encoder(job))] if encoder == FROZEN else []
        return fit_and_test(job, model, datamodule, callbacks)[job.optimized_metric]

    def _open_data(self, cfg: DictConfig) -> L.LightningDataModule:
        """The data of a target, read once for all that starts from them in turn."""
        plain = OmegaConf.to_container(cfg, resolve=True)
        if self._data is None or self._data[0] != plain:
            self._data = plain, build_data(cfg)
        return self._data[1]

    def _do(self, text: str, cell: Cell, log: CellLog, action: Callable[[], float | None]) -> Cell:
        self.progress.update(self._bar, description=text)
        begin = time.perf_counter()
        try:
            value, reason = action(), ""
            if value is not None and not math.isfinite(value):
                raise ValueError(f"Expected a finite metric, but got {value}. Lower the learning rate.")
        except Exception as error:  # one piece of work that fails must not end the run
            value, reason = None, _reason(error)
            self.progress.console.print(f"Failed {text}: {reason}", highlight=False, markup=False)
        seconds, now = round(time.perf_counter() - begin, 2), datetime.now(timezone.utc)
        done = replace(cell, value=value, seconds=seconds, reason=reason, finished=now.isoformat())
        log.append(done)
        self.progress.advance(self._bar)
        return done

    def _skip(self, cell: Cell) -> Cell:
        # Taken from the total, not counted as done in no time, which would spoil the estimate of the time left.
        self._left -= 1
        self.progress.update(self._bar, total=self._left)
        return cell

    def _is_there(self, name: str) -> bool:
        return name in self.study.library.names()

    def _is_current(self, name: str) -> bool:
        return self.logs[TRAINED].trained(name) in {None, self._source_settings(name)}

    def _source_settings(self, name: str) -> str:
        return settings_of(self.study.source_job(name), [[probe.recipe, probe.budgets] for probe in self.study.probes])


def _head(encoder: str) -> str:
    return "" if encoder == TRAINED else " the head for"


def _advice(decision: Decision | None) -> str:
    if decision is None:
        return ""
    return SCRATCH if decision.source is None else TRANSFER


def _reason(error: Exception) -> str:
    """One line that says what went wrong."""
    return " ".join((str(error) or type(error).__name__).split())
