"""Evaluations whose work several processes share, each with sources and a log of its own."""

import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from rich.progress import Progress

from evaluate_helpers import SETS, config, read, run_until_killed, sabotage, small
from pge_lightning.app import TaskError, main, run
from pge_lightning.app.evaluate import evaluate
from pge_lightning.app.study import start_study
from pge_lightning.app.work import Worker
from pge_lightning.library import Library
from pge_lightning.record import SCRATCH

ALL = {"sources": SETS, "targets": SETS}
OPTIONS = ("evaluate.seeds=[0]", "evaluate.threads=1")
KEY = ["target", "source", "seed", "settings", "value"]


def shard(number, of=2):
    return f"evaluate.shard={number}", f"evaluate.shards={of}"


def cells(folder, *numbers):
    """What came of all work, whatever the file it is written in."""
    found = pd.concat([read(folder, f"cells-{number}") for number in numbers])
    return found[KEY].sort_values(KEY).reset_index(drop=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three sets, each a source and a target, by a single run."""
    folder = tmp_path_factory.mktemp("whole")
    evaluate(config(folder, *OPTIONS, **ALL))
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """What the first of two shards did, before the other one began."""
    folder = tmp_path_factory.mktemp("first")
    assert evaluate(config(folder, *OPTIONS, *shard(0), **ALL)) is None
    return folder


@pytest.fixture
def folder(first, tmp_path):
    shutil.copytree(first, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def _leave_hydra_alone():
    yield
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.mark.usefixtures("_leave_hydra_alone")
def test_two_processes_at_once_give_what_one_gives(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "evaluate.shard=0,1", "evaluate.shards=2"]
    monkeypatch.setattr(sys, "argv", ["pge", "-m", *small(tmp_path, **ALL), *OPTIONS, *launcher])
    main()
    results = tmp_path / "library-evaluation"
    assert sorted(path.name for path in results.iterdir()) == ["cells-0.csv", "cells-1.csv"]
    expected = read(whole, "cells")[KEY].sort_values(KEY).reset_index(drop=True)
    pd.testing.assert_frame_equal(cells(tmp_path, 0, 1), expected)
    for name in SETS:
        Library(tmp_path / "library").verify(name)
    evaluate(config(tmp_path, *OPTIONS, **ALL))
    assert not (results / "cells.csv").exists()  # nothing was left to do
    for table in ("truth", "rankings", "results"):
        pd.testing.assert_frame_equal(read(tmp_path, table), read(whole, table))


def test_a_shard_has_every_other_source_and_the_first_one_scratch(folder):
    evaluate(config(folder, *OPTIONS, *shard(1), **ALL))
    tables = [read(folder, f"cells-{number}") for number in (0, 1)]
    trained = [table.loc[table["target"].isna(), "source"].tolist() for table in tables]
    assert trained == [["upright", "negative"], ["turned"]]
    tuned = [set(table.dropna(subset="target")[["target", "source"]].itertuples(index=False)) for table in tables]
    pairs = {(target, source) for target in SETS for source in (*SETS, SCRATCH) if source != target}
    assert tuned[0] | tuned[1] == pairs
    assert tuned[1] == {("upright", "turned"), ("negative", "turned")}


def test_a_shard_waits_for_none_and_leaves_the_report_to_others(whole, first, tmp_path, capsys):
    assert evaluate(config(tmp_path, *OPTIONS, *shard(1), **ALL)) is None
    assert [path.name for path in (tmp_path / "library-evaluation").iterdir()] == ["cells-1.csv"]
    said = " ".join(capsys.readouterr().out.split())
    assert "Shard 1 (of 0 to 1) has done its 2 fine-tunings, of which 0 failed." in said
    assert "neither rank nor report" in said
    assert Library(tmp_path / "library").names() == ["turned"]


def test_a_run_without_shards_does_what_is_missing_and_reports(whole, folder):
    before = read(folder, "cells-0")
    evaluate(config(folder, *OPTIONS, **ALL))
    assert len(read(folder, "cells")) == 1 + 2  # one source, which two others are targets for
    pd.testing.assert_frame_equal(read(folder, "cells-0"), before)
    pd.testing.assert_frame_equal(read(folder, "truth"), read(whole, "truth"))


def test_each_kind_of_encoder_has_logs_of_its_own(folder):
    evaluate(config(folder, *OPTIONS, *shard(0), "evaluate.encoders=[frozen]", **ALL))
    frozen = pd.read_csv(folder / "library-evaluation" / "frozen" / "cells-0.csv")
    assert set(frozen["source"]) == {"upright", "negative", SCRATCH}
    assert not set(frozen["settings"]) & set(read(folder, "cells-0")["settings"])


def test_a_shard_that_was_killed_goes_on(whole, tmp_path):
    log = tmp_path / "library-evaluation" / "cells-0.csv"
    options = (sabotage(tmp_path / "flag", log, 4), *OPTIONS, *shard(0))
    run_until_killed(config(tmp_path, *options, **ALL), tmp_path / "flag")
    before = log.read_text()
    log.write_text(before + "upright,neg")  # in the middle of a line
    evaluate(config(tmp_path, *options, **ALL))
    assert log.read_text().startswith(before)
    assert len(log.read_text().splitlines()) == 1 + 2 + 7


def test_what_fails_in_a_shard_is_said_and_tried_again_by_the_report(tmp_path, capsys):
    broken = ("+data@evaluate.sources.broken=digits", "evaluate.sources.broken.size=0", *OPTIONS)
    evaluate(config(tmp_path, *broken, *shard(0)))
    evaluate(config(tmp_path, *broken, *shard(1)))
    assert "Shard 0 (of 0 to 1) has done its 3 fine-tunings, of which 1 failed." in " ".join(
        capsys.readouterr().out.split()
    )
    evaluate(config(tmp_path, *broken))
    again = read(tmp_path, "cells")
    assert again["source"].tolist() == ["broken"] * 2
    assert again["reason"].notna().all()


def test_only_the_shard_of_a_changed_source_refuses_it(folder):
    changed = "evaluate.sources.upright.draw=1"
    with pytest.raises(TaskError, match="upright were trained with others"):
        run(config(folder, *OPTIONS, *shard(0), changed, **ALL))
    evaluate(config(folder, *OPTIONS, *shard(1), changed, **ALL))
    assert len(read(folder, "cells-1")) == 3


def test_sources_of_a_library_are_shared_like_others(folder):
    (_, second) = (start_study(config(folder, "data=digits", *shard(i), sources=(), targets=())) for i in (0, 1))
    assert (second.own, second.made) == (("upright",), ())
    assert second.starts("digits") == ["upright"]


def test_the_bar_ends_with_the_shards_own_work(folder):
    study = start_study(config(folder, *OPTIONS, *shard(1), **ALL))
    with Progress(disable=True) as progress:
        worker = Worker(study, progress)
        worker.train("turned")
        for target in study.targets:
            worker.fine_tune(target, 0)
    (bar,) = progress.tasks
    assert bar.completed == bar.total == 1 + 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluate.shards=0"], "`evaluate.shards` to be a whole number from 1 to the 2 sources, but got 0"),
        (["evaluate.shards=3"], "from 1 to the 2 sources, but got 3"),
        (["evaluate.shards=two"], "but got two"),
        (["evaluate.shard=1"], r"`evaluate.shard` to be a whole number from 0 to 0.*but got 1"),
        ([*shard(2)], r"from 0 to 1, .*but got 2\. Pass `-m evaluate\.shard=0,1`"),
        ([*shard(-1)], "but got -1"),
        ([*shard("all")], "but got all"),
    ],
)
def test_other_numbers_are_refused_before_any_work(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        start_study(config(tmp_path, *overrides))
    assert not Path(f"{tmp_path}/library-evaluation").exists()
