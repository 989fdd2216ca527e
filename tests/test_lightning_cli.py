"""Both callbacks from the command line of a user's own project, as LightningCLI builds it."""

import inspect
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from cli_modules import first_layer, fresh, loss, main
from pge_lightning.callbacks import PrincipalGradientCallback, SourceSelectionCallback
from pge_lightning.estimators import FactEstimator, FeatureScore, GapEstimator, Pipeline, RandomOrder
from pge_lightning.library import Library
from pge_lightning.probe import Probe
from pge_lightning.select import SourceSelector
from trainer_helpers import Net, add_source, make_loader

COLLECT, SELECT = "pge_lightning.callbacks.PrincipalGradientCallback", "pge_lightning.callbacks.SourceSelectionCallback"
ESTIMATORS = "pge_lightning.estimators."
PROBE = {"name": "cli", "restarts": 2, "steps": 3, "batch_size": 8, "budgets": [16]}


def config(folder, probe=PROBE, **options):
    """The content of a configuration file; ``options`` go to both callbacks."""
    collect = {"library": f"{folder}/library", "name": "target", "probe": probe, **options}
    select = {"library": f"{folder}/sources", "probe": probe, "verbose": False, **options}
    trainer = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [{"class_path": SELECT, "init_args": select}, {"class_path": COLLECT, "init_args": collect}],
    }
    return {"seed_everything": 1, "trainer": trainer, "model": {"width": 8}, "data": {"seed": 0}}


def written(folder, content):
    path = Path(folder, "config.yaml")
    path.write_text(yaml.safe_dump(content))
    return f"--config={path}"


def printed(arguments, capsys):
    """What ``--print_config`` gives, read again."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--print_config"], run=False)
    assert not ended.value.code
    return yaml.safe_load(capsys.readouterr().out)


def ours(trainer):
    return [
        next(callback for callback in trainer.callbacks if isinstance(callback, kind))
        for kind in (PrincipalGradientCallback, SourceSelectionCallback)
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(["near", "far"]):
        add_source(tmp_path / "sources", name, seed=5 * seed, probe=Probe(**PROBE), samples=64)
    return tmp_path


def test_a_run_from_a_file_selects_collects_trains_and_registers(folder):
    main(["fit", written(folder, config(folder))])
    source = Library(folder / "library").open("target")
    assert [(entry.probe, entry.budget) for entry in source.signatures] == [("cli", 16)]
    assert source.facts.samples == 64


def test_what_is_printed_can_be_read_again_and_gives_the_same(folder, capsys):
    first = printed([written(folder, config(folder))], capsys)
    assert printed([written(folder, first)], capsys) == first
    select, collect = [each["init_args"] for each in first["trainer"]["callbacks"]]
    assert collect["probe"]["budgets"] == [16]
    assert (select["estimator"], select["exclude"], select["samples"]) == (None, [], 5000)
    command = main([written(folder, first)], run=False)
    for callback in ours(command.trainer):
        found = (
            callback.probes if isinstance(callback, PrincipalGradientCallback) else callback.selector.estimator.probes
        )
        assert found == [Probe(**PROBE)]
    assert {name: collect["probe"][name] for name in PROBE} == PROBE


def test_functions_are_named_by_their_import_paths(folder):
    options = {"loss_fn": "cli_modules.loss", "factory": "cli_modules.fresh", "encoder": "cli_modules.first_layer"}
    command = main([written(folder, config(folder, **options))], run=False)
    collect, select = ours(command.trainer)
    assert (collect.loss_fn, collect.factory, collect.encoder) == (loss, fresh, first_layer)
    held = select.selector.target(Net(), make_loader()).options
    assert (held["loss_fn"], held["factory"], held["encoder"]) == (loss, fresh, first_layer)


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (
            {"class_path": ESTIMATORS + "GapEstimator", "init_args": {"probe": PROBE, "kind": "unit"}},
            GapEstimator(Probe(**{**PROBE, "budgets": (16,)}), kind="unit"),
        ),
        ({"class_path": ESTIMATORS + "FeatureScore", "init_args": {"score": "knn"}}, FeatureScore("knn")),
        (
            {
                "class_path": ESTIMATORS + "Pipeline",
                "init_args": {
                    "first": {"class_path": ESTIMATORS + "FactEstimator"},
                    "then": {"class_path": ESTIMATORS + "RandomOrder"},
                    "shortlist": "ties",
                },
            },
            Pipeline(FactEstimator(), RandomOrder(), "ties"),
        ),
    ],
)
def test_an_estimator_is_named_by_its_class(estimator, expected, folder):
    content = config(folder)
    content["trainer"]["callbacks"][0]["init_args"].pop("probe")
    content["trainer"]["callbacks"][0]["init_args"]["estimator"] = estimator
    command = main([written(folder, content)], run=False)
    assert ours(command.trainer)[1].selector.estimator == expected


@pytest.mark.parametrize("encoder", ["encoder", "encoder.0", "*.weight", "os.path"])
def test_an_encoder_that_is_a_name_or_a_pattern_stays_one(encoder, folder):
    command = main([written(folder, config(folder, encoder=encoder))], run=False)
    assert [callback.encoder for callback in (ours(command.trainer)[0], ours(command.trainer)[1].selector)] == [
        encoder,
        encoder,
    ]


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ("fast", ["fast"]),
        (["fast", "published"], ["fast", "published"]),
        (["fast", PROBE], ["fast", "cli"]),
    ],
)
def test_a_probe_is_a_name_a_recipe_or_several(probe, expected, folder):
    content = config(folder)
    content["trainer"]["callbacks"] = [content["trainer"]["callbacks"][1]]
    content["trainer"]["callbacks"][0]["init_args"]["probe"] = probe
    command = main([written(folder, content)], run=False)
    (callback,) = [each for each in command.trainer.callbacks if isinstance(each, PrincipalGradientCallback)]
    assert [each.name for each in callback.probes] == expected
    assert all(isinstance(each, Probe) for each in callback.probes)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"estimator": {"class_path": ESTIMATORS + "GapEstimator", "init_args": {"kind": "best"}}}, "kind"),
        ({"estimator": {"class_path": ESTIMATORS + "GapEstimate"}}, "GapEstimate"),
        ({"budgit": 200}, "budgit"),
        ({"probe": {"restart": 3}}, "restart"),
        ({"loss_fn": "cli_modules.missing"}, "loss_fn"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_before_any_work(wrong, told, folder, capsys):
    content = config(folder)
    content["trainer"]["callbacks"][0]["init_args"].update(wrong)
    with pytest.raises(SystemExit) as ended:
        main([written(folder, content)], run=False)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(("path", "kind"), [(COLLECT, PrincipalGradientCallback), (SELECT, SourceSelector)])
def test_help_shows_every_argument_with_its_type_and_meaning(path, kind, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100000")
    with pytest.raises(SystemExit):
        main([f"--trainer.callbacks.help={path}"], run=False)
    shown = [line.strip() for line in capsys.readouterr().out.splitlines()]
    meanings = {line.split()[0]: below for line, below in pairwise(shown) if line.startswith("--trainer.callbacks.")}
    for name in inspect.signature(kind).parameters:
        meaning, _, types = meanings[f"--trainer.callbacks.{name}"].partition("(")
        assert len(meaning) > 10
        assert "type: " in types
