"""What `pge` does: one function per task, from a configuration to its result."""

import json
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from omegaconf import DictConfig

from pge_lightning.app.build import (
    build_collector,
    build_data,
    build_model,
    build_recorders,
    build_selector,
    build_trainer,
)
from pge_lightning.callbacks.phase import is_dev_run, logged_metrics
from pge_lightning.errors import PGEError
from pge_lightning.probe import Probe
from pge_lightning.rank import Ranking

__all__ = ["AUTO", "SCRATCH", "collect", "finetune", "fit_and_test", "rank", "seeded_model", "write_ranking"]

AUTO, SCRATCH = "auto", "scratch"


def collect(cfg: DictConfig, probes: Sequence[Probe] = ()) -> float | None:
    """Train a source, with its signatures collected beforehand, and register it.

    Args:
        cfg: The whole configuration.
        probes: Collect with these instead of the configured probe.

    Returns:
        The recorded metric, ``optimized_metric`` by default; ``None`` where it was not logged.

    Raises:
        PGEError: If the library would not take the source, or collecting failed.
        ValueError: If the source's name stands for something else.
    """
    if cfg.name in (AUTO, SCRATCH):
        raise ValueError(f"Expected a name other than '{AUTO}' and '{SCRATCH}', but got name={cfg.name}.")
    callback = build_collector(cfg, probes)
    datamodule = build_data(cfg.data)
    model = seeded_model(cfg, datamodule)
    trainer = build_trainer(cfg, [callback])
    trainer.fit(model, datamodule=datamodule)
    if is_dev_run(trainer):
        return logged_metrics(trainer).get(cfg.optimized_metric)
    if callback.source is None and trainer.is_global_zero:
        raise PGEError(f"Expected source '{cfg.name}' to be registered, but it was not. See the warnings above.")
    return callback.source.facts.value if callback.source else None


def rank(cfg: DictConfig) -> None:
    """Rank all sources for a target, and write the ranking into the job's folder.

    Args:
        cfg: The whole configuration.
    """
    selector = build_selector(cfg)
    datamodule = build_data(cfg.data)
    model = seeded_model(cfg, datamodule)
    ranking = selector.rank(model, datamodule)
    write_ranking(ranking, cfg.output_dir)
    _ = ranking.best  # a ranking without a single comparison is a failed job


def finetune(cfg: DictConfig) -> float:
    """Fine-tune on a target from the source that was chosen, test the model, and record what came of it.

    Args:
        cfg: The whole configuration; ``source`` is ``auto``, ``scratch`` or the name of a source.

    Returns:
        The metric named by ``optimized_metric``, for sweepers.
    """
    selector = build_selector(cfg) if cfg.source != SCRATCH else None
    datamodule = build_data(cfg.data)
    model = seeded_model(cfg, datamodule)
    source, started = cfg.source, cfg.source
    if selector is not None and source == AUTO:
        selection = selector.select(model, datamodule)
        write_ranking(selection.ranking, cfg.output_dir)
        source, started = selection.source or SCRATCH, selection
    elif selector is not None:
        selector.load(model, source)
    metrics = fit_and_test(cfg, model, datamodule, build_recorders(cfg, started))
    _write_json({"source": source, "target": cfg.name, "metrics": metrics}, cfg.output_dir, "result.json")
    shown = ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
    print(f"Fine-tuned '{cfg.name}' from {source}: {shown}.")
    return metrics[cfg.optimized_metric]


def fit_and_test(
    cfg: DictConfig,
    model: L.LightningModule,
    datamodule: L.LightningDataModule,
    callbacks: Sequence[L.Callback] = (),
) -> dict[str, float]:
    """Train a model as configured, and test it where ``finetune.test`` says so.

    Args:
        cfg: The whole configuration.
        model: Where training starts from; it is trained in place.
        datamodule: The data, set up.
        callbacks: Further callbacks, called after the configured ones.

    Returns:
        All metrics that were logged, among them that named by ``optimized_metric``.

    Raises:
        ValueError: If there is no metric of that name.
    """
    trainer = build_trainer(cfg, callbacks)
    trainer.fit(model, datamodule=datamodule)
    metrics = logged_metrics(trainer)
    if cfg.finetune.test:
        trainer.test(model, datamodule=datamodule, verbose=False)
        metrics |= logged_metrics(trainer)
    if cfg.optimized_metric not in metrics:
        raise ValueError(
            f"Expected `optimized_metric` to be one of {sorted(metrics)}, but got {cfg.optimized_metric!r}. "
            "Name a metric that the model logs."
        )
    return metrics


def write_ranking(ranking: Ranking, folder: str | Path) -> None:
    """Write a ranking as ``ranking.csv`` (one row per source) and ``ranking.json`` (the same, and what was compared).

    Args:
        ranking: The ranking.
        folder: Where to; made if it is not there.
    """
    path = _write_json(ranking.to_dict(), folder, "ranking.json")
    ranking.to_pandas().to_csv(path.with_suffix(".csv"), index=False)


def seeded_model(cfg: DictConfig, datamodule: L.LightningDataModule) -> L.LightningModule:
    """Build the model from the configured seed; the training that follows draws from it, too.

    Args:
        cfg: The whole configuration.
        datamodule: The data, set up before, so that the model's start does not depend on how they were read.

    Returns:
        The model.
    """
    if cfg.seed is not None:
        L.seed_everything(cfg.seed, workers=True, verbose=False)
    return build_model(cfg.model, datamodule)


def _write_json(content: object, folder: str | Path, file: str) -> Path:
    path = Path(folder) / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
