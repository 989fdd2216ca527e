"""The log of an evaluation: what was finished is found again, by whatever run it was written."""

import csv

import pytest

from pge_lightning.app.cells import Cell, CellLog

DONE = Cell("t", "a", 0, "x", 0.5, 1.0)


def test_finds_what_was_finished_in_another_run(tmp_path):
    log = CellLog(tmp_path)
    for cell in (DONE, Cell("t", "b", 0, "x", None, 1.0, "a, b"), Cell("", "a", 0, "y", None, 2.0)):
        log.append(cell)
    again = CellLog(tmp_path)
    assert again.find(Cell("t", "a", 0, "x")) == DONE
    assert again.find(Cell("t", "a", 0, "other")) is None
    assert again.find(Cell("t", "b", 0, "x")) is None
    assert (again.trained("a"), again.trained("b")) == ("y", None)


def test_leaves_a_sound_file_as_it_is(tmp_path):
    log = CellLog(tmp_path)
    for cell in (DONE, Cell("t", 'quote " and, comma', 3, "x", 1 / 3, 0.07, "Erklärung", "2025-01-01T00:00:00+00:00")):
        log.append(cell)
    before = log.path.stat()
    CellLog(tmp_path)
    assert (log.path.stat().st_mtime_ns, log.path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_drops_a_torn_line(tmp_path, cut):
    path = tmp_path / "cells.csv"
    CellLog(tmp_path).append(DONE)
    whole = path.read_text()
    CellLog(tmp_path).append(Cell("t", "b", 0, "x", 0.25, 1.0, "some long reason that is cut"))
    path.write_text(path.read_text()[:-cut])
    log = CellLog(tmp_path)
    assert path.read_text() == whole
    again = Cell("t", "b", 0, "x", 0.75)
    log.append(again)
    assert CellLog(tmp_path).find(again) == again


def test_drops_a_torn_heading(tmp_path):
    (tmp_path / "cells.csv").write_text("target,sou")
    CellLog(tmp_path).append(DONE)
    assert CellLog(tmp_path).find(DONE) == DONE
    assert len((tmp_path / "cells.csv").read_text().splitlines()) == 2


def test_goes_on_with_a_log_that_does_not_tell_when(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_text("target,source,seed,settings,value,seconds,reason\nt,a,0,x,0.5,1.0,\n,a,0,y,0.25,2.0,\n")
    log = CellLog(tmp_path)
    assert (log.find(DONE), log.trained("a")) == (DONE, "y")
    log.append(Cell("t", "b", 1, "x", 0.75, 3.0, "", "2025-01-01T00:00:00+00:00"))
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["source"], row["finished"]) for row in rows] == [
        ("a", ""),
        ("a", ""),
        ("b", "2025-01-01T00:00:00+00:00"),
    ]


def test_shards_read_each_other_and_write_to_their_own(tmp_path):
    CellLog(tmp_path).append(DONE)
    for shard, source in enumerate("bc"):
        CellLog(tmp_path, shard).append(Cell("t", source, 0, "x", 0.5))
    for log in (CellLog(tmp_path), CellLog(tmp_path, 0), CellLog(tmp_path, 7)):
        assert all(log.find(Cell("t", source, 0, "x")) is not None for source in "abc")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells-0.csv", "cells-1.csv", "cells.csv"]
    assert all(len(path.read_text().splitlines()) == 2 for path in tmp_path.iterdir())


def test_a_line_that_another_shard_is_writing_is_left_alone(tmp_path):
    CellLog(tmp_path, 1).append(DONE)
    path = tmp_path / "cells-1.csv"
    path.write_text(path.read_text() + "t,b,0,x,0.7")
    before = path.read_text()
    log = CellLog(tmp_path, 0)
    assert log.find(DONE) == DONE
    assert log.find(Cell("t", "b", 0, "x")) is None
    assert path.read_text() == before


@pytest.mark.parametrize("first", [None, 0, 1])
@pytest.mark.parametrize("then", [None, 0, 1])
def test_the_last_training_of_a_source_counts_whichever_file_it_is_in(tmp_path, first, then):
    for day, (shard, settings) in enumerate([(first, "x"), (then, "y"), (first, "x"), (then, "y")], start=1):
        training = Cell("", "a", 0, settings, finished=f"2025-01-{day:02}T00:00:00+00:00")
        CellLog(tmp_path, shard).append(training)
        assert CellLog(tmp_path, 5).trained("a") == settings
