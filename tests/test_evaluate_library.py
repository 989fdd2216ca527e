"""Evaluations of sources that lie in a library, on the data that the command names."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from evaluate_helpers import SETS, SMALL, config, read
from pge_lightning.app import TaskError, run
from pge_lightning.app.evaluate import evaluate
from pge_lightning.app.study import start_study
from pge_lightning.library import Library
from pge_lightning.record import Record

DATA = ["data=digits", *(f"++data.{key}={value}" for key, value in SMALL.items())]


def own(folder, *overrides):
    """The sources of the library, and the group `data` as the target."""
    return config(folder, "evaluate.seeds=[0]", *DATA, *overrides, sources=(), targets=())


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A library of three sources, made by an evaluation that names their data."""
    folder = tmp_path_factory.mktemp("family")
    evaluate(config(folder, "evaluate.seeds=[0]", sources=SETS, targets=["upright"]))
    return folder


@pytest.fixture
def folder(family, tmp_path):
    """A copy of the library alone."""
    shutil.copytree(family / "library", tmp_path / "library")
    return tmp_path


def test_gives_what_the_family_gave_and_trains_no_source(family, folder, capsys):
    before = {path: path.read_bytes() for path in Path(folder, "library").rglob("*") if path.is_file()}
    assert run(own(folder, "name=upright")) is not None
    assert {path: path.read_bytes() for path in before} == before
    for table in ("truth", "rankings", "results"):
        pd.testing.assert_frame_equal(read(folder, table), read(family, table))
    assert read(folder, "cells")["target"].tolist() == ["upright"] * 3
    assert "Trained source" not in capsys.readouterr().out


def test_every_source_counts_but_that_of_the_targets_name(folder):
    study = start_study(own(folder))
    assert (study.targets, study.made) == (("digits",), ())
    assert study.candidates("digits") == ["negative", "turned", "upright", "scratch"]
    assert start_study(own(folder, "name=turned")).candidates("turned") == ["negative", "upright", "scratch"]


def test_only_leaves_sources_out_and_the_target_in(folder):
    study = start_study(own(folder, "evaluate.only=[turned,negative]"))
    assert (study.sources, study.targets) == (("negative", "turned"), ("digits",))


def test_named_sources_may_be_ranked_for_the_group_data(folder):
    study = start_study(config(folder, *DATA, "name=mine", targets=()))
    assert (study.sources, study.made, study.targets) == (("turned", "negative"), ("turned", "negative"), ("mine",))


def test_what_the_library_remembers_of_other_targets_is_known_to_estimators(folder):
    library = Library(folder / "library")
    for source, value in (("turned", 0.9), ("negative", 0.8), ("upright", 0.7)):
        library.add_record(Record(source, "elsewhere", "accuracy", value))
        library.add_record(Record(source, "digits", "accuracy", 1 - value))
    evaluate(own(folder, "selector=standing"))
    assert read(folder, "rankings")["source"].tolist() == ["turned", "negative", "upright"]


def test_advice_is_written_down_and_judged(folder, capsys):
    library = Library(folder / "library")
    for target in ("here", "there", "elsewhere"):
        library.add_record(Record("scratch", target, "accuracy", 0.9))
        for source in SETS:
            library.add_record(Record(source, target, "accuracy", 0.8))
    evaluate(own(folder))
    assert set(read(folder, "rankings")["advice"]) == {"scratch"}
    results, means = (read(folder, name).set_index("estimator") for name in ("results", "estimators"))
    assert results["advice"].dropna().to_dict() == {"gap": "scratch"}
    assert means["no_transfer_advised"].to_dict() == {"gap": 1, "source size": 0, "own metric": 0, "random": 0}
    assert means.loc["gap", "no_transfer_precision"] == (results.loc["gap", "gain"] <= 0)
    assert "scratch advised | of these right" in Path(f"{folder}/library-evaluation/summary.md").read_text()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("scratch  "))
    assert "advised" in line


def test_a_library_of_fewer_than_two_sources_is_refused(folder):
    shutil.rmtree(folder / "library" / "turned")
    shutil.rmtree(folder / "library" / "negative")
    with pytest.raises(TaskError, match=r"at least two sources.*\['upright'\].*task=collect"):
        run(own(folder))
    assert not Path(f"{folder}/library-evaluation").exists()
