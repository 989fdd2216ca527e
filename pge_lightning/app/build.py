"""From configurations to objects: the only place where Hydra instantiates anything."""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import lightning as L
from hydra.utils import get_object, instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from pge_lightning.callbacks import FineTuningRecordCallback, PrincipalGradientCallback
from pge_lightning.encoder import EncoderSpec
from pge_lightning.estimators.estimator import Estimator
from pge_lightning.library import Library
from pge_lightning.probe import Probe
from pge_lightning.select import Selection, SourceSelector

__all__ = [
    "build_collector",
    "build_data",
    "build_encoder",
    "build_estimator",
    "build_library",
    "build_model",
    "build_probe",
    "build_recorders",
    "build_selector",
    "build_trainer",
]


def build_data(cfg: DictConfig) -> L.LightningDataModule:
    """The data module, set up for fitting.

    ``cfg.name`` is what the data set is called; it is passed on only where the target has an argument of that name.

    Args:
        cfg: The group ``data``.

    Returns:
        The data module.
    """
    arguments = _plain(cfg)
    if "name" not in inspect.signature(get_object(_target(arguments))).parameters:
        arguments.pop("name", None)
    datamodule: L.LightningDataModule = _make(arguments)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def build_model(cfg: DictConfig, datamodule: L.LightningDataModule) -> L.LightningModule:
    """The model, with as many classes as the data has where ``cfg.num_classes`` is null.

    Args:
        cfg: The group ``model``.
        datamodule: The data, set up.

    Returns:
        The model; seed beforehand.

    Raises:
        ValueError: If the data does not say how many classes it has.
    """
    arguments = _plain(cfg)
    if arguments.get("num_classes", 0) is None:
        arguments["num_classes"] = getattr(datamodule, "num_classes", None)
        if arguments["num_classes"] is None:
            raise ValueError(
                f"Expected {type(datamodule).__name__} to have `num_classes`, but it has none. Set `model.num_classes`."
            )
    model: L.LightningModule = _make(arguments)
    return model


def build_encoder(cfg: DictConfig) -> EncoderSpec:
    """What names the encoder: the node ``encoder``, which may be a name, or say how to make a callable."""
    encoder: EncoderSpec = instantiate(cfg.encoder) if OmegaConf.is_config(cfg.encoder) else cfg.encoder
    return encoder


def build_trainer(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> L.Trainer:
    """The Trainer, with the configured callbacks and loggers.

    Args:
        cfg: The whole configuration: groups ``trainer``, ``callbacks`` and ``logger``.
        callbacks: Further callbacks, called after the configured ones.

    Returns:
        The Trainer.
    """
    trainer: L.Trainer = _make(
        _plain(cfg.trainer),
        callbacks=[*_make_all(cfg.get("callbacks")), *callbacks],
        logger=_make_all(cfg.get("logger")) or False,
    )
    return trainer


def build_probe(cfg: DictConfig) -> Probe:
    """The probe of the group ``probe``."""
    probe: Probe = _make(_plain(cfg))
    return probe


def build_library(cfg: DictConfig) -> Library:
    """The library of the group ``library``."""
    return Library(cfg.root, _plain(cfg).get("storage_options"))


def build_collector(cfg: DictConfig, probes: Sequence[Probe] = ()) -> PrincipalGradientCallback:
    """The callback that collects and registers a source.

    Args:
        cfg: The whole configuration: ``name``, the node ``collect``, and groups ``probe`` and ``library``.
        probes: Probes to collect with instead of that of the group ``probe``.

    Returns:
        The callback.
    """
    callback: PrincipalGradientCallback = _make(
        _plain(cfg.collect),
        library=build_library(cfg.library),
        name=cfg.name,
        probe=list(probes) or build_probe(cfg.probe),
        overwrite=cfg.library.overwrite,
    )
    return callback


def build_estimator(cfg: DictConfig) -> Estimator:
    """The estimator of the group ``selector``: what ranks the sources."""
    estimator: Estimator = _make(_plain(cfg))
    return estimator


def build_recorders(cfg: DictConfig, source: str | Selection) -> list[FineTuningRecordCallback]:
    """The callback that records a fine-tuning, or none where ``finetune.record`` is null.

    Args:
        cfg: The whole configuration: ``name``, ``finetune.record``, and the group ``library``.
        source: What fine-tuning starts from.

    Returns:
        At most one callback.
    """
    if cfg.finetune.record is None:
        return []
    library = build_library(cfg.library)
    return [_make(_plain(cfg.finetune.record), library=library, target=cfg.name, source=source)]


def build_selector(cfg: DictConfig, **live: Any) -> SourceSelector:
    """The selector.

    Args:
        cfg: The whole configuration: groups ``selector`` and ``library``, and the node ``select``.
        **live: Further arguments, past Hydra.

    Returns:
        The selector.
    """
    library, estimator = build_library(cfg.library), build_estimator(cfg.selector)
    selector: SourceSelector = _make(_plain(cfg.select), library=library, estimator=estimator, **live)
    return selector


def _plain(cfg: DictConfig) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))


def _target(arguments: dict[str, Any]) -> str:
    if "_target_" not in arguments:
        raise ValueError(
            f"Expected a configuration with the key `_target_`, but got the keys {list(arguments)}. "
            "Name the class or function to call."
        )
    return str(arguments["_target_"])


def _make(arguments: dict[str, Any], **live: Any) -> Any:
    # Live objects go past Hydra, which would turn dataclasses such as Probe into configurations.
    target = _target(arguments)
    build = instantiate(arguments, _partial_=True, _convert_="all")
    try:
        return build(**live)
    except TypeError as error:
        raise ValueError(f"Expected arguments that {target} takes, but got: {error}") from error


def _make_all(cfg: DictConfig | None) -> list[Any]:
    """Instantiate every named entry of a group that has a ``_target_``."""
    return [_make(entry) for entry in _plain(cfg or DictConfig({})).values() if entry and "_target_" in entry]
