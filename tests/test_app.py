import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from pge_lightning.app import TaskError, main, run
from pge_lightning.app.build import build_data, build_encoder, build_model, build_trainer
from pge_lightning.data import SklearnDigits
from pge_lightning.encoder import default_encoder
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.library import Library

TINY = [
    "data=digits",
    "data.labels=128",
    "++data.size=16",
    "model.encoder.width=4",
    "model.encoder.features=8",
    "probe=fast",
    "probe.steps=1",
    "probe.batch_size=32",
    "probe.budgets=[64]",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_val_batches=1",
    "trainer.enable_progress_bar=false",
]


class Witness(L.Callback):
    """Keeps the encoder that training starts from."""

    start: dict[str, torch.Tensor]

    def on_fit_start(self, trainer, pl_module):
        Witness.start = {name: value.clone() for name, value in pl_module.state_dict().items()}


class Rival(L.Callback):
    """Another run that registers the same name while this one trains."""

    def __init__(self, library: str) -> None:
        self.library = library

    def on_train_end(self, trainer, pl_module):
        shutil.copytree(Path(self.library) / "digits", Path(self.library) / "other", dirs_exist_ok=True)


def do(folder: Path, *overrides: str):
    """Compose and run in this process; tables and sources go to the folder."""
    with initialize_config_module("pge_lightning.conf", version_base="1.3"):
        places = [f"output_dir={folder}/out", f"library.root={folder}/sources"]
        return run(compose("pge", overrides=[*TINY, *places, *overrides]))


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture(autouse=True)
def _leave_logging_alone():
    names = ("", "lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    before = [(list(logger.handlers), list(logger.filters), logger.level) for logger in loggers]
    yield
    for logger, (handlers, filters, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.filters = handlers, filters
        logger.setLevel(level)
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    do(folder, "task=collect")
    do(folder, "task=collect", "name=sideways", "data.transform=rotate90", "data.draw=1")
    return folder


@pytest.fixture
def folder(two_sources, tmp_path) -> Path:
    """A copy of two sources, to be spoilt."""
    shutil.copytree(two_sources / "sources", tmp_path / "sources")
    return tmp_path


def test_collect_registers_a_source_and_returns_its_metric(tmp_path):
    value = do(tmp_path, "task=collect")
    source = Library(tmp_path / "sources").open("digits")
    assert (source.facts.metric, source.facts.value) == ("val_acc", value)
    assert (source.facts.classes, source.facts.samples) == (10, 128)
    assert [(entry.probe, entry.budget) for entry in source.signatures] == [("fast", 64)]
    assert all(name.startswith("encoder.") for name in source.load_weights())


def test_collect_refuses_a_name_that_is_taken_unless_told_to_replace(folder):
    created = Library(folder / "sources").open("digits").facts.created
    with pytest.raises(TaskError, match="registered already"):
        do(folder, "task=collect")
    assert Library(folder / "sources").open("digits").facts.created == created
    do(folder, "task=collect", "library.overwrite=true")
    assert Library(folder / "sources").open("digits").facts.created > created


@pytest.mark.parametrize("name", ["auto", "scratch"])
def test_collect_refuses_names_that_finetune_reads_otherwise(tmp_path, name):
    with pytest.raises(TaskError, match="Expected a name other than"):
        do(tmp_path, "task=collect", f"name={name}")
    assert not (tmp_path / "sources").exists()


def test_collect_fails_when_the_trained_source_could_not_be_registered(folder):
    rival = f"+callbacks.rival={{_target_: {__name__}.Rival, library: {folder}/sources}}"
    with (
        pytest.warns(UserWarning, match="could not be registered"),
        pytest.raises(TaskError, match="Expected source 'other' to be registered"),
    ):
        do(folder, "task=collect", "name=other", rival)


def test_collect_under_fast_dev_run_writes_nothing(tmp_path):
    assert do(tmp_path, "task=collect", "trainer.fast_dev_run=true") is not None
    assert not (tmp_path / "sources").exists()


def test_collect_without_training_registers_the_weights_as_they_came(tmp_path):
    assert do(tmp_path, "task=collect", "collect.stop_after_collecting=true") is None
    assert Library(tmp_path / "sources").open("digits").facts.metric is None


def test_rank_writes_a_table_with_the_nearest_source_first(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    do(folder, "task=rank", "selector=gap")
    frame, content = pd.read_csv(folder / "out" / "ranking.csv"), read(folder / "out" / "ranking.json")
    assert list(frame.source) == [line["source"] for line in content["sources"]] == ["digits", "sideways"]
    assert frame.gap[0] == content["sources"][0]["gap"] == 0 < frame.gap[1]
    details = content["details"]["gap"]
    assert (details["kind"], details["probe"], details["budget"]) == ("kernelwise", "fast", 64)
    assert details["noise_floor"] is None
    assert details["weighed"] is False  # two sources are too few
    assert "sideways" in capsys.readouterr().out


def test_rank_states_the_noise_floor_where_it_is_asked_for(folder, capsys):
    do(folder, "task=rank", "selector=gap", "selector.floor=true", "selector.kind=unit")
    details = read(folder / "out" / "ranking.json")["details"]["gap"]
    assert details["kind"] == "unit"
    assert details["noise_floor"] > 0
    assert "Noise floor of gap" in capsys.readouterr().out


SELECTORS = ["linear_probe", "log_me", "knn", "h_score", "leep", "nce", "source_size", "source_metric", "random"]


@pytest.mark.parametrize("selector", SELECTORS)
def test_rank_takes_any_selector_by_its_name(selector, folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    do(folder, "task=rank", f"selector={selector}")
    frame, content = pd.read_csv(folder / "out" / "ranking.csv"), read(folder / "out" / "ranking.json")
    assert (content["estimator"], content["higher_is_better"]) == (selector, True)
    assert set(frame.source) == {"digits", "sideways"}
    assert frame[selector].is_monotonic_decreasing
    assert frame[selector].notna().all()
    assert frame[selector].tolist() == pytest.approx([line[selector] for line in content["sources"]])
    assert (folder / "sources" / ".targets").exists() is False
    shown = capsys.readouterr().out
    assert f"Sources by {selector}, larger is better" in shown
    for line in content["sources"]:
        assert f"{line[selector]:.4f}" in shown


MEMBERS = """
    estimators: {gap: {_target_: pge_lightning.estimators.GapEstimator, probe: ${probe}},
                 features: {_target_: pge_lightning.estimators.FeatureScore, score: linear_probe},
                 none: null}
"""


def test_all_columns_of_a_combination_are_written_and_printed(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    combination = f"{{_target_: pge_lightning.estimators.Combination, {' '.join(MEMBERS.split())}}}"
    do(folder, "task=rank", "~selector", f"+selector={combination.replace(': ', ':')}")
    frame, content = pd.read_csv(folder / "out" / "ranking.csv"), read(folder / "out" / "ranking.json")
    assert content["estimator"] == "combined"
    assert content["details"]["gap"]["budget"] == 64
    numbers = ["combined", "gap", "linear_probe"]
    assert frame[numbers].notna().all().all()
    assert frame.source[0] == "digits"
    shown = capsys.readouterr().out
    for line, row in zip(content["sources"], frame.to_dict("records"), strict=True):
        assert [line[name] for name in numbers] == pytest.approx([row[name] for name in numbers])
        assert all(f"{line[name]:.3f}" in shown for name in numbers[1:])
    assert all(name in shown for name in numbers)


def test_a_pipeline_opens_what_is_on_its_shortlist(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    first, then = (f"{{_target_:pge_lightning.estimators.{name}}}" for name in ("FactEstimator", "FeatureScore"))
    pipeline = f"{{_target_:pge_lightning.estimators.Pipeline,first:{first},then:{then},shortlist:1}}"
    do(folder, "task=rank", "~selector", f"+selector={pipeline}")
    frame = pd.read_csv(folder / "out" / "ranking.csv")
    assert frame.status.tolist() == ["ok", "not opened"]
    assert frame.linear_probe.isna().tolist() == [False, True]
    assert "Opened 1 of 2 sources: digits." in read(folder / "out" / "ranking.json")["notes"]
    assert "not opened" in capsys.readouterr().out


def test_a_selector_that_can_say_nothing_of_any_source_fails(folder):
    for name in ("digits", "sideways"):
        next((folder / "sources" / name).glob("encoder-*")).write_bytes(b"damaged")
    with pytest.raises(TaskError, match="all 2 failed"):
        do(folder, "task=rank", "selector=linear_probe")
    frame = pd.read_csv(folder / "out" / "ranking.csv")
    assert frame.linear_probe.isna().all()
    assert frame.reason.str.contains("SHA-256").all()


def test_options_of_the_selection_reach_it(folder):
    do(folder, "task=rank", "selector=source_size", "select.exclude=[digits]")
    assert pd.read_csv(folder / "out" / "ranking.csv").source.tolist() == ["sideways"]


def test_rank_fails_when_nothing_compares_but_says_why_in_its_files(folder):
    with pytest.raises(TaskError, match="all 2 failed"):
        do(folder, "task=rank", "selector=gap", "probe.seed=7")
    assert set(pd.read_csv(folder / "out" / "ranking.csv").status) == {"failed"}


def test_the_published_probe_and_gap_go_together(tmp_path):
    published = ["probe=published", "selector=published", "probe.batch_size=64", "probe.budgets=[]", "data.labels=128"]
    do(tmp_path, "task=collect", *published)
    do(tmp_path, "task=rank", "data.draw=1", *published)
    content = read(tmp_path / "out" / "ranking.json")
    assert (content["details"]["gap"]["kind"], content["details"]["gap"]["probe"]) == ("published", "published")
    assert content["sources"][0]["status"] == "ok"


WITNESS = f"+callbacks.witness._target_={__name__}.Witness"


def test_finetune_auto_starts_from_the_best_source(folder):
    value = do(folder, "task=finetune", "source=auto", WITNESS)
    result = read(folder / "out" / "result.json")
    assert (result["source"], result["target"], result["metrics"]["val_acc"]) == ("digits", "digits", value)
    assert "test_acc" in result["metrics"]
    weights = Library(folder / "sources").open("digits").load_weights()
    assert all(torch.equal(Witness.start[name], value) for name, value in weights.items())
    assert read(folder / "out" / "ranking.json")["sources"][0]["source"] == "digits"


def test_finetune_from_a_named_source_loads_that_one(folder):
    do(folder, "task=finetune", "source=sideways", "finetune.test=false", WITNESS)
    weights = Library(folder / "sources").open("sideways").load_weights()
    assert all(torch.equal(Witness.start[name], value) for name, value in weights.items())
    assert "test_acc" not in read(folder / "out" / "result.json")["metrics"]


def test_finetune_from_scratch_needs_no_library_and_repeats_itself(tmp_path):
    first = do(tmp_path, "task=finetune", "source=scratch", WITNESS, "optimized_metric=val_loss")
    start = Witness.start
    second = do(tmp_path, "task=finetune", "source=scratch", WITNESS, "optimized_metric=val_loss")
    assert first == second
    do(tmp_path, "task=finetune", "source=scratch", WITNESS, "seed=1")
    name = "encoder.layers.0.0.weight"
    assert not torch.equal(start[name], Witness.start[name])
    assert Library(tmp_path / "sources").names() == []


def test_heads_of_all_starts_are_equal_for_one_seed(folder):
    heads = []
    for source in ("auto", "scratch", "sideways"):
        do(folder, "task=finetune", f"source={source}", "finetune.test=false", WITNESS)
        heads.append(Witness.start["head.weight"])
    assert torch.equal(heads[0], heads[1])
    assert torch.equal(heads[0], heads[2])


def test_finetune_without_a_seed_leaves_the_start_to_chance(tmp_path):
    starts = []
    for _ in range(2):
        do(tmp_path, "task=finetune", "source=scratch", "finetune.test=false", "seed=null", WITNESS)
        starts.append(Witness.start["head.weight"])
    assert not torch.equal(*starts)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["source=unknown"], r"Expected one of the sources \['digits', 'sideways'\]"),
        (["source=scratch", "optimized_metric=f1"], r"one of \['test_acc', .*'val_loss'\], but got 'f1'"),
    ],
)
def test_finetune_names_what_there_is(folder, overrides, message):
    with pytest.raises(TaskError, match=message):
        do(folder, "task=finetune", *overrides)


def test_library_lists_and_shows(folder, capsys):
    do(folder, "task=library")
    listed = capsys.readouterr().out
    assert "2 sources in" in listed
    assert "sideways" in listed
    do(folder, "task=library", "library.action=show", "library.source=digits")
    shown = capsys.readouterr().out
    assert "val_acc" in shown
    assert "64 samples" in shown


def test_library_lists_an_empty_library(tmp_path, capsys):
    do(tmp_path, "task=library")
    assert "0 sources in" in capsys.readouterr().out


def test_library_verifies_every_source_and_fails_if_one_is_damaged(folder, capsys):
    do(folder, "task=library", "library.action=verify")
    assert capsys.readouterr().out.count("sound") == 2
    next((folder / "sources" / "digits").glob("encoder-*")).write_bytes(b"damaged")
    with pytest.raises(TaskError, match="1 are damaged: digits") as caught:
        do(folder, "task=library", "library.action=verify")
    assert isinstance(caught.value.__cause__, PGEError)
    assert capsys.readouterr().out.count("sound") == 1
    do(folder, "task=library", "library.action=verify", "library.source=sideways")


def test_library_lists_a_source_that_cannot_be_opened(folder, capsys):
    (folder / "sources" / "digits" / "source.json").write_text("{")
    do(folder, "task=library")
    listed = capsys.readouterr().out
    assert "damaged" in listed
    assert "sideways" in listed
    with pytest.raises(TaskError) as caught:
        do(folder, "task=library", "library.action=show", "library.source=digits")
    assert isinstance(caught.value.__cause__, ArtifactError)


def test_library_removes_one_source(folder):
    do(folder, "task=library", "library.action=remove", "library.source=digits")
    assert Library(folder / "sources").names() == ["sideways"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["library.action=burn"], "'list', 'show', 'verify', 'remove'"),
        (["library.action=remove"], "Pass `library.source=NAME`"),
        (["library.action=show", "library.source=nobody"], r"\['digits', 'sideways'\].*'nobody'"),
    ],
)
def test_library_says_what_it_can_do(folder, overrides, message):
    with pytest.raises(TaskError, match=message):
        do(folder, "task=library", *overrides)


@pytest.mark.parametrize("overrides", [[], ["task=dance"]])
def test_an_unknown_task_is_answered_with_the_tasks_there_are(tmp_path, overrides):
    with pytest.raises(TaskError, match="one of collect, rank, finetune, library, evaluate, but got"):
        do(tmp_path, *overrides)


def command(monkeypatch, folder: Path, *overrides: str) -> int | str | None:
    """Run `pge` with these arguments as the shell would, but in this process; the exit code."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["pge", *overrides])
    tracer = sys.gettrace()
    # Hydra takes any tracer, that of coverage too, for a debugger, and then raises instead of exiting.
    sys.settrace(None)
    try:
        main()
    except SystemExit as end:
        return end.code
    finally:
        sys.settrace(tracer)
    return 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=rank"], "Expected sources in the library"),
        (
            ["task=collect", "data=usps", "~data.size", "data.root=/nowhere"],
            "Set `data.root` to the folder that holds 'gray28'",
        ),
        (["task=collect", "+data.colour=red"], "unexpected keyword argument 'colour'"),
        (["task=collect", "model.encoder._target_=pge_lightning.Nothing"], "Nothing"),
        (["task=collect", "model.encoder.width=wide"], "ImageEncoder"),
        (["task=collect", "model.optimizer=lion"], "'adam', 'adamw' or 'sgd', but got 'lion'"),
        (["task=collect", "trainer.accelerator=abacus"], "abacus"),
    ],
)
def test_errors_reach_the_shell_as_one_message(tmp_path, monkeypatch, capsys, overrides, message):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    assert command(monkeypatch, tmp_path, *TINY, *overrides) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert errors.count("\n") < 10


def test_the_whole_traceback_can_be_had(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pge", *TINY, "task=rank"])
    with pytest.raises(TaskError) as caught:
        main()
    assert isinstance(caught.value.__cause__, PGEError)


def test_a_job_writes_below_outputs_and_nothing_else_but_the_library(tmp_path, monkeypatch):
    assert command(monkeypatch, tmp_path, *TINY, "task=collect", "logger=csv") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "sources"]
    (metrics,) = tmp_path.glob("outputs/*/*/csv/version_0/metrics.csv")
    assert "val_acc" in metrics.read_text()


def test_two_processes_register_at_once(tmp_path, monkeypatch):
    sweep = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "task=collect", "name=first,second"]
    assert command(monkeypatch, tmp_path, "-m", *TINY, *sweep) == 0
    library = Library(tmp_path / "sources")
    assert library.names() == ["first", "second"]
    for name in library.names():
        library.verify(name)
    assert len(list(tmp_path.glob("outputs/multirun/*/*/[01]/pge.log"))) == 2


def test_a_failed_job_fails_the_sweep_but_not_the_other_jobs(tmp_path, monkeypatch, capsys):
    assert command(monkeypatch, tmp_path, "-m", *TINY, "task=collect", "name=auto,good") == 1
    assert "Expected a name other than" in capsys.readouterr().err
    assert Library(tmp_path / "sources").names() == ["good"]


def test_an_application_of_its_own_builds_on_the_shipped_configurations(tmp_path):
    files = {
        "mine.py": """
            import hydra
            from torch import nn
            from pge_lightning.app import run

            class Flat(nn.Sequential):
                features = 8

                def __init__(self, pixels: int) -> None:
                    super().__init__(nn.Flatten(), nn.Linear(pixels, self.features), nn.ReLU())

            @hydra.main(version_base="1.3", config_path="conf", config_name="mine")
            def main(cfg):
                return run(cfg)

            if __name__ == "__main__":
                main()
        """,
        "conf/mine.yaml": """
            defaults:
              - pge
              - override data: inverted
              - override model: flat
              - _self_
            task: collect
            hydra:
              searchpath: [pkg://pge_lightning.conf]
        """,
        "conf/data/inverted.yaml": """
            defaults: [digits]
            name: inverted
            transform: invert
        """,
        "conf/model/flat.yaml": """
            _target_: pge_lightning.reference.Classifier
            encoder: {_target_: mine.Flat, pixels: 256}
            num_classes: null
        """,
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text))
    overrides = [item for item in TINY if not item.startswith(("data=", "model."))]
    job = subprocess.run(
        [sys.executable, "mine.py", *overrides],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert job.returncode == 0, job.stderr
    assert set(Library(tmp_path / "sources").open("inverted").load_weights()) == {"encoder.1.weight", "encoder.1.bias"}
    assert "Source 'inverted' is registered" in job.stderr
    assert "GPU available" not in job.stdout + job.stderr


class Countless(L.LightningDataModule):
    """Does not say how many classes it has."""


def test_a_model_takes_its_classes_from_the_data():
    digits = build_data(OmegaConf.create({"_target_": "pge_lightning.data.SklearnDigits", "classes": [1, 2, 3]}))
    assert isinstance(digits, SklearnDigits)
    model = {
        "_target_": "pge_lightning.reference.Classifier",
        "encoder": {"_target_": "pge_lightning.reference.ImageEncoder"},
    }
    assert build_model(OmegaConf.create({**model, "num_classes": None}), digits).head.out_features == 3
    assert build_model(OmegaConf.create({**model, "num_classes": 5}), Countless()).head.out_features == 5
    with pytest.raises(ValueError, match=r"Set `model\.num_classes`"):
        build_model(OmegaConf.create({**model, "num_classes": None}), Countless())


def test_the_encoder_is_named_or_made():
    assert build_encoder(OmegaConf.create({"encoder": None})) is None
    assert build_encoder(OmegaConf.create({"encoder": "*.backbone.*"})) == "*.backbone.*"
    method = {"_target_": "hydra.utils.get_method", "path": "pge_lightning.encoder.default_encoder"}
    assert build_encoder(OmegaConf.create({"encoder": method})) is default_encoder


def test_data_without_a_target_is_refused():
    with pytest.raises(ValueError, match="key `_target_`"):
        build_data(OmegaConf.create({"name": "digits"}))


def test_data_with_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"arguments that pge_lightning\.data\.Gray28 takes.*'colour'"):
        build_data(OmegaConf.create({"_target_": "pge_lightning.data.Gray28", "name": "x", "root": "y", "colour": 1}))


def test_evaluate_is_one_of_the_tasks(tmp_path):
    with pytest.raises(TaskError, match="evaluate"):
        do(tmp_path, "task=evaluate")


def test_configured_callbacks_come_before_those_of_the_task():
    cfg = OmegaConf.create({
        "trainer": {"_target_": "lightning.Trainer", "accelerator": "cpu", "enable_checkpointing": False},
        "callbacks": {"first": {"_target_": f"{__name__}.Witness"}, "off": None},
    })
    second = Witness()
    trainer = build_trainer(cfg, [second])
    witnesses = [callback for callback in trainer.callbacks if isinstance(callback, Witness)]
    assert len(witnesses) == 2
    assert witnesses[1] is second
    assert trainer.loggers == []
