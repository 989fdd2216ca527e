import gzip
import inspect
import json
from importlib import resources
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from pge_lightning.app.build import (
    build_collector,
    build_data,
    build_estimator,
    build_library,
    build_model,
    build_probe,
    build_selector,
    build_trainer,
)
from pge_lightning.callbacks import PrincipalGradientCallback
from pge_lightning.data import ArrayDataModule
from pge_lightning.estimators import FactEstimator, FeatureScore, GapEstimator, RandomOrder
from pge_lightning.estimators.baselines import FACTS
from pge_lightning.estimators.estimator import NEEDS, Estimator, probes_of
from pge_lightning.estimators.feature_score import SCORES
from pge_lightning.probe import PROBES
from pge_lightning.select import SourceSelector

CONF = Path(str(resources.files("pge_lightning.conf")))
# Which data a configuration of another group is instantiated with.
COMPANION = {("model", "series"): "ucr", ("model", "text"): "text_intent"}


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def shipped() -> list[tuple[str, str]]:
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir() and any(path.glob("*.yaml")))
    return [(group, option) for group in groups for option in options(group)]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("pge_lightning.conf", version_base="1.3"):
        return compose("pge", overrides=["output_dir=unused", "trainer.accelerator=cpu", *overrides])


def write_archive(path: Path, x: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    y = np.arange(len(x)) % 3
    np.savez(path, train_x=x, train_y=y, test_x=x[:6], test_y=y[:6], classes=np.array(["a", "b", "c"]))


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    """A folder with a small file for every name that a shipped configuration asks for."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    names = {OmegaConf.load(path).get("name") for path in (CONF / "data").glob("*.yaml")}
    for name in names:
        write_archive(root / "gray28" / f"{name}.npz", random.integers(0, 256, (600, 28, 28), dtype=np.uint8))
    write_archive(root / "ucr" / "ECG200.npz", random.standard_normal((12, 40), dtype=np.float32))
    (root / "text_intent").mkdir()
    with gzip.open(root / "text_intent" / "banking77.jsonl.gz", "wt") as file:
        for split in ("train", "test"):
            for label in range(3):
                file.write(json.dumps({"split": split, "text": f"word {label}", "label": label}) + "\n")
    return root


@pytest.fixture(autouse=True)
def environment(monkeypatch, data_root) -> None:
    monkeypatch.setenv("PGE_DATA", str(data_root))
    monkeypatch.delenv("PGE_LIBRARY", raising=False)


def defaults_of(function, without: set[str]) -> dict[str, object]:
    parameters = inspect.signature(function).parameters
    return {name: item.default for name, item in parameters.items() if name not in {"self", *without}}


def node(cfg: DictConfig) -> dict[str, object]:
    return {key: value for key, value in OmegaConf.to_container(cfg, resolve=True).items() if key != "_target_"}


@pytest.mark.parametrize(("group", "option"), shipped())
def test_every_shipped_configuration_composes_and_instantiates(group, option, tmp_path):
    overrides = [f"{group}={option}"]
    if group != "family":
        overrides.append(f"data={COMPANION.get((group, option), 'digits')}" if group != "data" else "model=image")
    cfg = composed(*overrides, f"library.root={tmp_path}")
    datamodule = build_data(cfg.data)
    model = build_model(cfg.model, datamodule)
    trainer = build_trainer(cfg, [build_collector(cfg)])
    x, _ = next(iter(datamodule.train_dataloader()))
    if group != "data":
        assert model(x).shape == (len(x), datamodule.num_classes)
    assert isinstance(trainer, L.Trainer)
    selector = build_selector(cfg)
    assert isinstance(selector.estimator, Estimator)
    assert set(selector.estimator.needs) <= set(NEEDS)
    if group == "probe":
        assert build_probe(cfg.probe) in probes_of(selector.estimator)
    assert build_library(cfg.library).names() == []


def test_every_group_and_the_primary_configuration_were_found_on_disk():
    groups = {group for group, _ in shipped()}
    assert groups >= {
        "callbacks", "data", "family", "library", "logger", "model", "probe", "selector", "trainer",
    }  # fmt: skip
    assert (CONF / "pge.yaml").is_file()


@pytest.mark.parametrize("name", sorted(PROBES))
def test_probe_configurations_equal_the_shipped_probes_field_by_field(name):
    cfg = composed(f"probe={name}").probe
    assert build_probe(cfg) == PROBES[name]
    assert set(node(cfg)) == set(PROBES[name].__dataclass_fields__)


def test_there_is_a_configuration_for_every_shipped_probe():
    assert options("probe") == sorted(PROBES)


@pytest.mark.parametrize(
    ("option", "kind"),
    [("gap", "kernelwise"), ("layerwise", "layerwise"), ("published", "published"), ("unit", "unit")],
)
def test_gap_configurations_spell_out_every_argument(option, kind):
    cfg = composed(f"selector={option}", "probe=fast")
    expected = defaults_of(GapEstimator.__init__, without={"probe", "name"})
    assert node(cfg.selector) == {**expected, "kind": kind, "probe": OmegaConf.to_container(cfg.probe)}
    assert build_estimator(cfg.selector) == GapEstimator("fast", kind=kind)


def test_there_is_a_configuration_for_every_feature_score():
    held = {}
    for option in options("selector"):
        estimator = build_estimator(composed(f"selector={option}").selector)
        if isinstance(estimator, FeatureScore):
            held[option] = estimator
            assert node(composed(f"selector={option}").selector) == {"score": option, "options": {}}
    assert held == {score: FeatureScore(score) for score in SCORES}


def test_there_is_a_configuration_for_every_trivial_baseline():
    for fact in FACTS:
        assert build_estimator(composed(f"selector={fact}").selector) == FactEstimator(fact)
    assert build_estimator(composed("selector=random").selector) == RandomOrder(0)


def test_the_selecting_node_spells_out_every_argument():
    cfg = composed("data=digits").select
    expected = defaults_of(SourceSelector.__init__, without={"library", "estimator", "probe", "records"})
    assert node(cfg) == {**expected, "name": "digits", "exclude": []}


def test_the_collecting_node_spells_out_every_argument():
    cfg = composed("data=digits").collect
    expected = defaults_of(PrincipalGradientCallback.__init__, without={"library", "name", "probe", "overwrite"})
    assert node(cfg) == {**expected, "metric": "val_acc"}


def test_data_configurations_spell_out_every_shared_option():
    cfg = composed("data=digits").data
    shared = defaults_of(ArrayDataModule.__init__, without=set())
    assert node(cfg) == {**shared, "name": "digits", "size": 28}


@pytest.mark.parametrize("option", [name for name in options("data") if name not in ("gray28", "ucr", "text_intent")])
def test_a_data_set_is_called_like_its_configuration(option):
    cfg = composed(f"data={option}")
    assert cfg.name == cfg.data.name == option


def test_the_name_and_the_data_folder_can_be_overridden(data_root):
    cfg = composed("name=mine", "data=usps", "data.root=/elsewhere")
    assert (cfg.name, cfg.data.root) == ("mine", "/elsewhere")
    assert composed("data=usps").data.root == str(data_root)


def test_the_library_may_be_named_by_the_environment(monkeypatch):
    assert composed().library.root == "sources"
    monkeypatch.setenv("PGE_LIBRARY", "shared")
    assert composed().library.root == "shared"


@pytest.mark.parametrize("family", options("family"))
def test_a_family_is_a_whole_evaluation_in_a_folder_of_its_own(family):
    cfg = composed(f"family={family}")
    assert cfg == composed("task=evaluate", f"family={family}")
    assert (cfg.task, cfg.library.root) == ("evaluate", f"outputs/{family}/sources")
    assert cfg.evaluate.results == f"outputs/{family}/results"
    assert len(cfg.evaluate.sources) >= 2
    assert len(cfg.evaluate.targets) >= 1


def test_encoder_and_vocabulary_reach_everything_that_needs_them():
    cfg = composed("family=text_intent", "encoder=model.encoder", "data.vocabulary=99")
    assert cfg.collect.encoder == cfg.select.encoder == "model.encoder"
    assert cfg.model.encoder.vocabulary == 99


def test_the_debugging_trainer_runs_one_batch(tmp_path):
    trainer = build_trainer(composed("trainer=debug", f"output_dir={tmp_path}"))
    assert (trainer.fast_dev_run, trainer.default_root_dir) == (1, str(tmp_path))
