import json
import math
import multiprocessing
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest

from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.functional.standing import standardised
from pge_lightning.library import Library
from pge_lightning.record import Record, decode_record, encode_record
from pge_lightning.records import Records


def run(source, target, value, **fields):
    return Record(source, target, "val_acc", value, **{"created": None, **fields})


def table(**targets):
    """Records of a table of values: target to source to value."""
    return Records(run(source, target, value) for target, row in targets.items() for source, value in row.items())


def files(library: Library) -> list[Path]:
    return sorted(Path(library.root, ".records").glob("*"))


def add_many(root: str, seeds: range) -> None:
    library = Library(root)
    for seed in seeds:
        library.add_record(run("a", "t", 0.5, seed=seed))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("source", "", "`source` to be a name"),
        ("target", " usps", "`target` to be a name"),
        ("metric", 3, "`metric` to be a name"),
        ("value", math.nan, "`value` to be a finite number"),
        ("value", "0.9", "`value` to be a finite number"),
        ("value", True, "`value` to be a finite number"),
        ("higher_is_better", 1, "`higher_is_better` to be true or false"),
        ("seed", 0.5, "`seed` to be an integer"),
        ("created", "yesterday", "`created` to be a time"),
        ("created", 2025, "`created` to be a time"),
        ("estimates", {"gap": math.inf}, "the estimate 'gap'"),
        ("estimates", [0.5], "`estimates` to be a mapping"),
        ("settings", {"value": 3}, "settings beside"),
        ("settings", {"estimates.gap": 3}, "settings beside"),
        ("settings", {"data": object()}, "JSON types"),
        ("settings", {"rate": math.nan}, "JSON types"),
        ("settings", ["labels"], "`settings` to be a mapping"),
    ],
)
def test_a_record_refuses_what_cannot_be_used_and_names_it(field, value, says):
    good = {"source": "mnist", "target": "usps", "metric": "val_acc", "value": 0.9}
    with pytest.raises(ValueError, match=says):
        Record(**{**good, field: value})


def test_a_record_keeps_plain_values_and_the_time_of_its_making():
    record = Record("mnist", "usps", "val_loss", 1, higher_is_better=False, settings={"rates": (1, 2)})
    assert (record.value, type(record.value)) == (1.0, float)
    assert record.settings == {"rates": [1, 2]}
    assert record.created.endswith("+00:00")
    assert Record("mnist", "usps", "val_acc", 1, created="2025-01-01T00:00:00Z").created == "2025-01-01T00:00:00Z"


def test_json_gives_a_record_back_and_refuses_anything_else():
    record = run("mnist", "usps", 0.9, seed=3, settings={"labels": 200}, estimates={"gap": 0.5})
    assert decode_record(encode_record(record)) == record
    for content in ({"kind": "record", "schema": 1}, {"kind": "source", "schema": 1}, [1], {"schema": 99}):
        with pytest.raises(ArtifactError):
            decode_record(json.dumps(content).encode())
    with pytest.raises(ArtifactError, match="damaged"):
        decode_record(encode_record(record)[:-5])
    with pytest.raises(ArtifactError, match="finite"):
        decode_record(encode_record(record).replace(b"0.9", b"NaN"))


def test_a_table_gives_the_records_back_whatever_their_words_look_like(tmp_path):
    records = [
        run("mnist", "usps", 0.1 + 0.2, seed=0, settings={"labels": 200, "note": 'a, "b"\n2nd line'}),
        run("1e5", "true", 0.5, settings={"labels": "200", "empty": " ", "none": None, "odd": "NaN", "list": [1, {}]}),
        run("scratch", "usps", 2.0, higher_is_better=False, estimates={"gap": 0.25, "linear_probe": 0.5}),
        Record("é", "null", "val_acc", -1e-300),
    ]
    Records(records).to_csv(tmp_path / "runs.csv")
    read = list(Records.from_csv(tmp_path / "runs.csv"))
    assert read == records


def test_a_table_written_by_pandas_is_read(tmp_path):
    frame = pd.DataFrame({
        "source": ["mnist", "scratch"],
        "target": ["usps", "usps"],
        "metric": ["val_loss", "val_loss"],
        "value": [0.5, 0.75],
        "seed": [0, None],
        "higher_is_better": [False, False],
        "labels": [8, 8],
        "estimates.gap": [0.5, None],
    })
    frame.to_csv(tmp_path / "runs.csv", index=False)
    first, second = Records.from_csv(tmp_path / "runs.csv")
    assert (first.seed, first.higher_is_better, first.settings, first.estimates) == (
        0,
        False,
        {"labels": 8},
        {"gap": 0.5},
    )
    assert (second.seed, second.estimates, second.created) == (None, {}, None)


@pytest.mark.parametrize(
    ("rows", "line", "says"),
    [
        (["mnist,usps,val_acc,0.9,0", "mnist,usps,val_acc,high,0"], 3, "`value` to be a finite number, but got 'high'"),
        (["mnist,usps,val_acc,nan,0"], 2, "finite"),
        (["mnist,usps,val_acc,,0"], 2, "finite"),
        (["mnist,usps,val_acc,0.9,0", "mnist,,val_acc,0.9,0"], 3, "`target` to be a name"),
        (["mnist,usps,val_acc,0.9,0,1"], 2, "5 cells"),
        (["mnist,usps,val_acc,0.9"], 2, "5 cells"),
        (['mnist,"us\nps",val_acc,0.9,first'], 3, "seed"),
        (['mnist,"usps,val_acc,0.9,0'], 2, "unexpected end"),
    ],
)
def test_a_damaged_row_is_refused_with_its_line_and_nothing_is_imported(tmp_path, rows, line, says):
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(["source,target,metric,value,seed", *rows]))
    library = Library(tmp_path / "sources")
    with pytest.raises(ValueError, match=f"(?s)Line {line} of .*{says}.*Nothing was imported"):
        library.import_records(path)
    assert len(library.records()) == 0


def test_a_file_that_is_no_table_of_records_is_refused(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("source,target,value\nmnist,usps,0.9\n")
    with pytest.raises(ValueError, match=r"\['metric'\] are missing"):
        Records.from_csv(path)
    path.write_text("source,target,metric,value,higher_is_better\nmnist,usps,val_acc,0.9,perhaps\n")
    with pytest.raises(ValueError, match=r"Line 2 .*`higher_is_better`"):
        Records.from_csv(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="Check"):
        Records.from_csv(path)
    with pytest.raises(ArtifactError, match=r"none\.csv"):
        Records.from_csv(tmp_path / "none.csv")


def test_a_table_without_rows_holds_no_records(tmp_path):
    Records().to_csv(tmp_path / "runs.csv")
    assert len(Records.from_csv(tmp_path / "runs.csv")) == 0
    assert Records().to_pandas().columns.tolist()[:4] == ["source", "target", "metric", "value"]
    assert Records().standings(sources=["mnist"])["standing"].tolist() == [0.0]


def test_pandas_has_a_column_for_every_setting_and_estimate():
    records = Records([run("a", "t", 0.5, settings={"labels": 8}), run("b", "t", 0.6, estimates={"gap": 0.25})])
    frame = records.to_pandas()
    assert frame.columns.tolist()[-2:] == ["labels", "estimates.gap"]
    assert frame["source"].tolist() == ["a", "b"]
    assert frame["estimates.gap"].tolist()[1:] == [0.25]


def test_equal_records_count_once_and_runs_told_apart_by_their_seed_do_not():
    assert len(Records([run("a", "t", 0.5), run("a", "t", 0.5)])) == 1
    assert len(Records([run("a", "t", 0.5, seed=0), run("a", "t", 0.5, seed=1)])) == 2


def test_means_are_taken_over_seeds_of_the_same_conditions():
    records = Records([
        run("a", "t", 0.5, seed=0),
        run("a", "t", 0.7, seed=1),
        run("a", "t", 0.9, settings={"labels": 1000}),
        run("b", "t", 0.4),
    ])
    means = records.means().set_index(["source", "settings"])
    assert means.loc[("a", "{}"), "value"] == pytest.approx(0.6)
    assert means.loc[("a", "{}"), "seeds"] == 2
    assert means.loc[("a", "{}"), "standard_deviation"] == pytest.approx(math.sqrt(0.02))
    assert means.loc[("a", '{"labels": 1000}'), "seeds"] == 1
    assert math.isnan(means.loc[("b", "{}"), "standard_deviation"])


def test_a_metric_of_two_directions_is_refused():
    records = Records([run("a", "t", 0.5), run("b", "t", 0.5, higher_is_better=False)])
    with pytest.raises(PGEError, match=r"\['val_acc'\] have both"):
        records.standings()


def test_the_lower_loss_has_the_higher_standing():
    values = {"good": 0.5, "poor": 1.5}
    records = Records(Record(name, "t", "val_loss", value, higher_is_better=False) for name, value in values.items())
    standing = records.standings()["standing"]
    assert standing["good"] > 0 > standing["poor"]


def test_runs_of_other_settings_are_not_compared():
    records = Records([run("a", "t", 0.9, settings={"labels": 1000}), run("b", "t", 0.5, settings={"labels": 8})])
    assert standardised(records.scores()).empty
    assert records.standings()["targets"].tolist() == [0, 0]


def test_metrics_of_other_units_do_not_drown_each_other():
    grid = [(i, step, name) for i in range(3) for step, name in enumerate("abc")]
    percent = [Record(name, f"p{i}", "percent", 10.0 * i + step) for i, step, name in grid]
    fraction = [Record(name, f"f{i}", "acc", 0.01 * i + 0.1 * step) for i, step, name in grid]
    spread = standardised(Records([*percent, *fraction]).scores()).std(axis=1)
    assert spread.min() == pytest.approx(spread.max())


def test_two_metrics_of_one_target_share_its_weight():
    one = [run(name, target, value) for target, value, name in (("t", 0.9, "a"), ("t", 0.1, "b"), ("u", 0.2, "a"))]
    both = [*one, *(Record(record.source, record.target, "f1", record.value, created=None) for record in one)]
    pd.testing.assert_frame_equal(Records(one).standings(), Records(both).standings())


def test_a_source_says_nothing_by_its_own_data_set_nor_by_the_target_that_is_left_out():
    records = table(t={"a": 0.9, "b": 0.1}, a={"a": 0.9, "b": 0.8, "c": 0.5}, u={"a": 0.1, "b": 0.2, "c": 0.3})
    left = records.standings(exclude_target="t")
    pd.testing.assert_frame_equal(left, records.without_target("t").standings())
    assert left.loc["a", "targets"] == 1
    assert left.loc["b", "targets"] == 2
    assert left.loc["a", "standing"] < left.loc["b", "standing"]


def test_a_source_nobody_tried_stands_in_the_middle_with_the_largest_error():
    standing = table(t={"a": 0.9, "b": 0.1}, u={"a": 0.9, "b": 0.1}).standings(sources=["new"])
    assert standing.loc["new", "standing"] == 0
    assert standing.loc["new", "targets"] == 0
    assert standing["standard_error"].idxmax() == "new"


def test_many_targets_make_a_standing_larger_and_surer():
    few = table(**{f"t{i}": {"a": 0.9, "b": 0.1} for i in range(2)}).standings()
    many = table(**{f"t{i}": {"a": 0.9, "b": 0.1} for i in range(20)}).standings()
    assert many.loc["a", "standing"] > few.loc["a", "standing"] > 0
    assert many.loc["a", "standard_error"] < few.loc["a", "standard_error"]


def test_a_source_tried_beside_the_best_ones_only_is_not_the_worse_for_it():
    strong = {"best": 0.9, "second": 0.8}
    weak = {"best": 0.9, "third": 0.3, "fourth": 0.2, "fifth": 0.1}
    records = table(**{f"s{i}": strong for i in range(5)}, **{f"w{i}": weak for i in range(5)})
    standing = records.standings()["standing"]
    assert standing["second"] > standing["third"]
    assert standardised(records.scores())["second"].mean() < 0


def test_the_library_keeps_records_across_instances_and_removals(tmp_path):
    library = Library(tmp_path / "sources")
    assert len(library.records()) == 0
    late, early = (run("mnist", "usps", 0.9, created=f"{year}-01-01T00:00:00+00:00") for year in (2026, 2025))
    library.add_record(late)
    library.add_record(early)
    assert list(Library(tmp_path / "sources").records()) == [early, late]
    assert library.names() == []


def test_importing_a_table_twice_does_nothing(tmp_path):
    library = Library(tmp_path / "sources")
    table(t={"a": 0.9, "b": 0.1}).to_csv(tmp_path / "runs.csv")
    assert library.import_records(tmp_path / "runs.csv") == 2
    before = [(path.name, path.stat().st_mtime_ns) for path in files(library)]
    assert library.import_records(tmp_path / "runs.csv") == 0
    assert [(path.name, path.stat().st_mtime_ns) for path in files(library)] == before


def test_a_damaged_record_is_left_out_with_a_warning_that_names_it(tmp_path):
    library = Library(tmp_path / "sources")
    for seed in range(3):
        library.add_record(run("a", "t", 0.5, seed=seed))
    cut, foreign, _ = files(library)
    cut.write_bytes(cut.read_bytes()[:20])
    foreign.write_text("{}")
    Path(library.root, ".records", "notes.txt").write_text("not a record")
    with pytest.warns(UserWarning, match="left out") as warned:
        assert len(library.records()) == 1
    assert all(any(path.name in str(entry.message) for entry in warned) for path in (cut, foreign))


def test_a_record_of_a_later_version_is_left_out_with_a_warning(tmp_path):
    library = Library("memory://later")
    content = encode_record(run("a", "t", 0.5)).replace(b'"schema": 1', b'"schema": 99')
    library._fs.pipe_file(f"{library.root}/.records/{sha256(content).hexdigest()[:32]}.json", content)
    with pytest.warns(UserWarning, match="Upgrade"):
        assert len(library.records()) == 0


def test_several_processes_record_at_the_same_time(tmp_path):
    root = str(tmp_path / "sources")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(root, seeds)) for seeds in (range(20), range(10, 30))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(record.seed for record in Library(root).records()) == list(range(30))


def test_records_that_cannot_be_written_are_an_error(tmp_path):
    (tmp_path / "sources").write_text("a file")
    with pytest.raises(ArtifactError):
        Library(tmp_path / "sources").add_record(run("a", "t", 0.5))
