import json
import shutil
import textwrap
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from pge_lightning.app import TaskError, run
from pge_lightning.library import Library
from pge_lightning.record import Record
from pge_lightning.records import Records
from test_app import TINY

RUNS = """\
    source,target,metric,value,seed,labels
    mnist,usps,val_acc,0.91,0,200
    mnist,usps,val_acc,0.93,1,200
    svhn,usps,val_acc,0.80,0,200
"""


def do(folder: Path, *overrides: str):
    """Compose and run in this process; tables and sources go to the folder."""
    with initialize_config_module("pge_lightning.conf", version_base="1.3"):
        places = [f"output_dir={folder}/out", f"library.root={folder}/sources"]
        return run(compose("pge", overrides=[*TINY, *places, *overrides]))


def records(folder: Path) -> list[Record]:
    return list(Library(folder / "sources").records())


@pytest.fixture(autouse=True)
def _forget_hydra():
    yield
    GlobalHydra.instance().clear()


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    do(folder, "task=collect", "name=sideways", "data.transform=rotate90", "data.draw=1")
    return folder


@pytest.fixture
def folder(source, tmp_path) -> Path:
    shutil.copytree(source / "sources", tmp_path / "sources")
    return tmp_path


@pytest.fixture
def table(tmp_path) -> Path:
    (tmp_path / "runs.csv").write_text(textwrap.dedent(RUNS))
    return tmp_path / "runs.csv"


def test_import_keeps_the_records_of_a_table_once(tmp_path, table, capsys):
    for expected in (3, 0):
        do(tmp_path, "task=library", "library.action=import", f"library.file={table}")
        assert f"Imported {expected} new records" in capsys.readouterr().out
    assert len(records(tmp_path)) == 3
    assert {record.settings["labels"] for record in records(tmp_path)} == {200}


def test_import_refuses_a_damaged_row_with_its_line(tmp_path, table):
    table.write_text(table.read_text().replace("0.80", "high"))
    with pytest.raises(TaskError, match=r"Line 4 of .*runs\.csv.*Nothing was imported"):
        do(tmp_path, "task=library", "library.action=import", f"library.file={table}")
    assert records(tmp_path) == []


def test_import_needs_a_file_that_is_there(tmp_path):
    with pytest.raises(TaskError, match=r"library\.file=FILE\.csv"):
        do(tmp_path, "task=library", "library.action=import")
    with pytest.raises(TaskError, match=r"none\.csv"):
        do(tmp_path, "task=library", "library.action=import", f"library.file={tmp_path}/none.csv")


def test_records_shows_means_and_standings(tmp_path, table, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    Library(tmp_path / "sources").import_records(table)
    do(tmp_path, "task=library", "library.action=records")
    shown = capsys.readouterr().out
    assert "3 records" in shown
    assert "0.9200" in shown
    assert shown.index("+0.35") < shown.index("-0.35")


def test_records_writes_a_table_that_can_be_imported(tmp_path, table):
    Library(tmp_path / "sources").import_records(table)
    do(tmp_path, "task=library", "library.action=records", f"library.file={tmp_path}/out.csv")
    assert list(Records.from_csv(tmp_path / "out.csv")) == records(tmp_path)


def test_records_of_an_empty_library_are_none(tmp_path, capsys):
    do(tmp_path, "task=library", "library.action=records")
    assert "0 records" in capsys.readouterr().out


def test_finetune_records_its_result_with_what_was_told_of_the_source(folder):
    value = do(folder, "task=finetune", "source=auto", "select.scratch=false", "seed=5")
    (record,) = records(folder)
    assert (record.source, record.target, record.metric) == ("sideways", "digits", "val_acc")
    assert record.value == pytest.approx(value)
    assert record.seed == 5
    (row,) = json.loads((folder / "out" / "ranking.json").read_text())["sources"]
    assert record.estimates["gap"] == pytest.approx(row["gap"])


def test_finetune_from_scratch_and_from_a_named_source_compare(folder):
    do(folder, "task=finetune", "source=scratch", "finetune.test=false")
    do(folder, "task=finetune", "source=sideways", "finetune.test=false")
    assert {record.source: record.estimates for record in records(folder)} == {"scratch": {}, "sideways": {}}
    standings = Library(folder / "sources").records().standings()
    assert standings["targets"].tolist() == [1, 1]


@pytest.mark.parametrize(("metric", "higher"), [("test_acc", True), ("val_loss", False)])
def test_finetune_records_the_metric_that_it_returns(tmp_path, metric, higher):
    options = [f"optimized_metric={metric}", "finetune.record.settings={labels:128}"]
    value = do(tmp_path, "task=finetune", "source=scratch", *options)
    (record,) = records(tmp_path)
    assert (record.metric, record.higher_is_better, record.settings) == (metric, higher, {"labels": 128})
    assert record.value == pytest.approx(value)


@pytest.mark.parametrize("override", ["finetune.record=null", "trainer.fast_dev_run=true"])
def test_finetune_records_nothing_where_it_should_not(tmp_path, override):
    do(tmp_path, "task=finetune", "source=scratch", "finetune.test=false", override)
    assert not (tmp_path / "sources").exists()


def test_finetune_without_a_library_that_can_be_written_still_gives_its_result(tmp_path):
    (tmp_path / "sources").write_text("no folder")
    with pytest.warns(UserWarning, match="will not be recorded"):
        value = do(tmp_path, "task=finetune", "source=scratch", "finetune.test=false")
    assert 0 <= value <= 1
