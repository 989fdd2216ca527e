"""What an evaluation is made of: its sources, targets, seeds and estimators, each as a job of its own."""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from pge_lightning.app.build import build_estimator, build_library
from pge_lightning.app.tasks import AUTO, SCRATCH
from pge_lightning.estimators.estimator import Estimator, probes_of
from pge_lightning.library import Library
from pge_lightning.probe import Probe

__all__ = ["FROZEN", "TRAINED", "Contestant", "Study", "settings_of", "start_study"]

# What may differ between two runs that give the same result.
INCIDENTAL = {"root", "default_root_dir", "num_workers"}
CONTESTANT_KEYS = {"probe", "selector", "data"}
# What fine-tuning may do with the encoder.
TRAINED, FROZEN = "trained", "frozen"


@dataclass(frozen=True)
class Contestant:
    """A way to rank sources that is to be judged.

    Args:
        name: What it is called in tables.
        estimator: The estimator.
        data: What differs from a target's data while it is judged.
    """

    name: str
    estimator: Estimator
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A checked evaluation.

    Args:
        cfg: The whole configuration.
        sources: Names of the sources; those without data of their own lie in the library as they are.
        targets: Names of the targets.
        seeds: Seeds of fine-tuning.
        encoders: Whether the encoder is trained or frozen while fine-tuning: one evaluation each.
        estimators: The ways to rank.
        library: Where the sources are.
        results: Folder of tables and picture.
        shard: Number of this run, where several share the work; from 0.
        shards: How many they are.
    """

    cfg: DictConfig
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    seeds: tuple[int, ...]
    encoders: tuple[str, ...]
    estimators: tuple[Contestant, ...]
    library: Library
    results: Path
    shard: int = 0
    shards: int = 1

    @property
    def probes(self) -> list[Probe]:
        """What every source is collected with: one probe per recipe, with the rungs of all estimators."""
        merged: dict[str, Probe] = {}
        for probe in (probe for each in self.estimators for probe in probes_of(each.estimator)):
            key = json.dumps([probe.recipe, bool(probe.budgets)])
            known = merged.setdefault(key, probe)
            merged[key] = replace(known, budgets=tuple({*known.budgets, *probe.budgets}))
        return list(merged.values())

    def candidates(self, target: str) -> list[str]:
        """What fine-tuning on a target may start from: all sources but its own, and scratch."""
        return [*(name for name in self.sources if name != target), SCRATCH]

    def starts(self, target: str) -> list[str]:
        """Those of the candidates that this run fine-tunes from: sources of its shard, and scratch in the first one."""
        return [name for name in self.candidates(target) if name in self.own or (name == SCRATCH and self.shard == 0)]

    @property
    def own(self) -> tuple[str, ...]:
        """The sources of this run's shard."""
        return self.sources[self.shard :: self.shards]

    @property
    def made(self) -> tuple[str, ...]:
        """The sources that this run trains."""
        return tuple(name for name in self.own if name in self.cfg.evaluate.sources)

    def folder(self, encoder: str) -> Path:
        """Where cells, tables and picture of one evaluation lie."""
        return self.results if encoder == TRAINED else self.results / encoder

    def source_job(self, name: str) -> DictConfig:
        """The configuration that trains a source."""
        job = self._job(name, self.cfg.evaluate.sources[name])
        return _merge(job, self.cfg.evaluate.train)

    def target_job(self, name: str, seed: int, encoder: str = TRAINED) -> DictConfig:
        """The configuration that fine-tunes on a target, the whole model or the head alone."""
        job = self._job(name, self.cfg.evaluate.targets.get(name, self.cfg.data))
        job.seed, job.optimized_metric, job.finetune.test = seed, self.cfg.evaluate.metric, True
        job = _merge(job, self.cfg.evaluate.finetune)
        return _merge(job, self.cfg.evaluate.heads) if encoder == FROZEN else job

    def ranking_job(self, name: str, contestant: Contestant) -> DictConfig:
        """The configuration that ranks the sources for a target."""
        job = self.target_job(name, self.seeds[0])
        # Other sources may lie in the library; and the target's own is never counted.
        strangers = [other for other in self.library.names() if other not in self.candidates(name)]
        job = _merge(job, {"data": dict(contestant.data), "select": {"verbose": False}})
        job.select.exclude = sorted({*strangers, *job.select.exclude})
        return job

    def _job(self, name: str, data: DictConfig) -> DictConfig:
        job = copy.deepcopy(self.cfg)
        OmegaConf.set_struct(job, False)
        job.data = copy.deepcopy(data)
        job.name, job.trainer.enable_progress_bar = name, False
        return job


def start_study(cfg: DictConfig) -> Study:
    """Read and check the node ``evaluate``, and make the folders of the results.

    Args:
        cfg: The whole configuration.

    Returns:
        The study.

    Raises:
        ValueError: If something is missing, malformed or unknown; nothing has been computed then.
    """
    node, library = cfg.evaluate, build_library(cfg.library)
    sources, targets = _names(cfg, library)
    seeds = tuple(node.seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"Expected `evaluate.seeds` to be different seeds, but got {list(seeds)}.")
    encoders = tuple(node.encoders)
    if not encoders or len(set(encoders)) < len(encoders) or not {TRAINED, FROZEN}.issuperset(encoders):
        raise ValueError(
            f"Expected `evaluate.encoders` to name '{TRAINED}', '{FROZEN}' or both, but got {node.encoders}."
        )
    _check_shard(node.shard, node.shards, len(sources))
    entries = node.estimators or {build_estimator(cfg.selector).name: {}}
    estimators = tuple(_contestant(cfg, str(name), entry or {}) for name, entry in entries.items())
    if "://" in str(node.results):
        raise ValueError(f"Expected `evaluate.results` to be a local folder, but got {node.results}. Set one.")
    folder = Path(node.results)
    study = Study(cfg, sources, targets, seeds, encoders, estimators, library, folder, node.shard, node.shards)
    for encoder in (TRAINED, *encoders):
        study.folder(encoder).mkdir(parents=True, exist_ok=True)
    return study


def settings_of(job: DictConfig, *more: object) -> str:
    """A short hash of what a training depends on; work done under other settings is done again.

    Args:
        job: The configuration of the training.
        *more: Anything else that matters, in JSON types.

    Returns:
        12 hexadecimal digits.
    """
    groups = ("seed", "data", "model", "trainer", "callbacks", "encoder", "optimized_metric")
    nodes = {key: job[key] for key in groups}
    plain = {
        key: OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
        for key, node in nodes.items()
    }
    text = json.dumps([_without_incidentals(plain), *more], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _without_incidentals(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_incidentals(entry) for key, entry in value.items() if key not in INCIDENTAL}
    return [_without_incidentals(entry) for entry in value] if isinstance(value, list) else value


def _merge(job: DictConfig, overrides: object) -> DictConfig:
    return cast("DictConfig", OmegaConf.merge(job, overrides))


def _names(cfg: DictConfig, library: Library) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Sources and targets; by default what lies in the library, and the group ``data``."""
    node = cfg.evaluate
    sources = [str(name) for name in node.sources or library.names()]
    targets = [str(name) for name in node.targets or [cfg.name]]
    if node.only is not None:
        known = {*sources, *targets}
        if unknown := [name for name in node.only if name not in known]:
            raise ValueError(f"Expected `evaluate.only` to name some of {sorted(known)}, but got {unknown}.")
        sources = [name for name in sources if name in node.only]
        targets = [name for name in targets if name in node.only or not node.targets]
    if len(sources) < 2 or not targets:
        raise ValueError(
            f"Expected at least two sources and a target, but got {sources} and {targets}. Collect sources in "
            f"'{library.root}' with `pge task=collect`, or name the data of those that are to be trained: "
            "`/data@evaluate.sources.NAME: OPTION` in the defaults of a family."
        )
    for name in sources:
        library.check_name(name, overwrite=True)
        if name in (AUTO, SCRATCH):
            raise ValueError(f"Expected source names other than '{AUTO}' and '{SCRATCH}', but got '{name}'.")
    return tuple(sources), tuple(targets)


def _check_shard(shard: object, shards: object, sources: int) -> None:
    if not isinstance(shards, int) or not 1 <= shards <= sources:
        raise ValueError(
            f"Expected `evaluate.shards` to be a whole number from 1 to the {sources} sources, but got {shards}."
        )
    if not isinstance(shard, int) or not 0 <= shard < shards:
        raise ValueError(
            f"Expected `evaluate.shard` to be a whole number from 0 to {shards - 1}, because there are {shards} "
            f"shards, but got {shard}. Pass `-m evaluate.shard={','.join(map(str, range(shards)))}` to run all."
        )


def _contestant(cfg: DictConfig, name: str, entry: Mapping[str, Any]) -> Contestant:
    if unknown := sorted(set(entry) - CONTESTANT_KEYS):
        raise ValueError(
            f"Expected the estimator '{name}' to have only the keys {sorted(CONTESTANT_KEYS)}, but got {unknown}."
        )
    job, probe, selector = _free(cfg), entry.get("probe") or {}, entry.get("selector") or {}
    if isinstance(probe, str):
        job.probe = {"_target_": f"{Probe.__module__}.{Probe.__name__}", **asdict(Probe.of(probe))}
    else:
        job.probe = _merge(job.probe, probe)
    # One with a class of its own is another selector, not what differs from the configured one.
    job.selector = selector if "_target_" in selector else _merge(job.selector, selector)
    return Contestant(name, build_estimator(job.selector), dict(entry.get("data") or {}))


def _free(cfg: DictConfig) -> DictConfig:
    """A copy that takes new keys."""
    free = copy.deepcopy(cfg)
    OmegaConf.set_struct(free, False)
    return free
