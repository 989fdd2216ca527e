import numpy as np
import pandas as pd
import pytest

from pge_lightning.estimators.standing import StandingEstimator
from pge_lightning.estimators.target import Target
from pge_lightning.functional.standing import standardised, standings
from pge_lightning.library import Library
from pge_lightning.rank import rank_sources
from pge_lightning.record import Record
from pge_lightning.records import Records
from trainer_helpers import Net, make_loader

NAN = float("nan")


def reference(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same model, solved with the targets' effects and without any elimination."""
    deviations = values - np.nanmean(values, axis=1, keepdims=True)
    freedom = (~np.isnan(values)).sum(axis=1) - 1
    squares = np.nansum(deviations**2, axis=1)
    y = deviations / np.sqrt((squares + squares.sum() / freedom.sum()) / (freedom + 1))[:, None]
    rows, columns = np.nonzero(~np.isnan(y))
    count = values.shape[0]
    design = np.zeros((len(rows), sum(values.shape)))
    design[np.arange(len(rows)), rows] = design[np.arange(len(rows)), count + columns] = 1
    penalty = np.diag([0.0] * count + [1.0] * values.shape[1])
    inverse = np.linalg.inv(design.T @ design + penalty)
    solution = inverse @ design.T @ y[rows, columns]
    residual = y[rows, columns] - design @ solution
    variance = (residual @ residual + solution @ penalty @ solution) / (len(rows) - count)
    return solution[count:], np.sqrt(variance * np.diag(inverse)[count:])


def records(**targets):
    return Records(
        Record(source, target, "val_acc", value, created=None)
        for target, row in targets.items()
        for source, value in row.items()
    )


def target(folder, **options):
    return Target(Net(), make_loader(), Library(folder), encoder="encoder", cache=False, **options)


@pytest.mark.parametrize("holes", [0.0, 0.4])
def test_standings_solve_the_mixed_model(holes):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(12, 6)) + rng.normal(size=6)
    values[rng.random(values.shape) < holes] = NAN
    values = values[(~np.isnan(values)).sum(axis=1) > 1]
    found = standings(standardised(pd.DataFrame(values)))
    standing, error = reference(values)
    assert np.allclose(found["standing"], standing)
    assert np.allclose(found["standard_error"], error)


def test_a_complete_table_gives_shrunken_means():
    scaled = standardised(pd.DataFrame(np.random.default_rng(1).normal(size=(4, 5))))
    assert np.allclose(standings(scaled)["standing"], scaled.sum() / (4 + 1))


def test_standings_do_not_depend_on_the_scale_and_the_level_of_a_target():
    table = pd.DataFrame(np.random.default_rng(2).normal(size=(4, 5)))
    index = pd.MultiIndex.from_tuples([(f"t{i}", f"m{i}") for i in range(4)])
    moved = table.mul([1, 10, 100, 0.1], axis="index").add([5, 0, -3, 1], axis="index").set_axis(index, axis="index")
    apart = table.set_axis(index, axis="index")
    assert np.allclose(standings(standardised(apart))["standing"], standings(standardised(moved))["standing"])


def test_targets_on_which_all_did_the_same_count_as_such():
    told, same = {"a": [0.9], "b": [0.1]}, {"a": [0.9, 0.5, 0.5], "b": [0.1, 0.5, 0.5]}
    few, many = (standings(standardised(pd.DataFrame(table))) for table in (told, same))
    assert 0 < many.loc["a", "standing"] < few.loc["a", "standing"]
    nothing = standings(standardised(pd.DataFrame({"a": [0.5], "b": [0.5]})))
    assert nothing["standing"].tolist() == [0, 0]


def test_one_source_on_a_target_tells_nothing():
    assert standardised(pd.DataFrame({"a": [0.9, 0.8], "b": [NAN, 0.7]})).index.tolist() == [1]


def test_without_any_record_every_source_stands_in_the_middle():
    found = standings(standardised(pd.DataFrame({"a": [], "b": []}, dtype=float)))
    assert found["standing"].tolist() == [0, 0]
    assert (found["standard_error"] > 0).all()


def test_the_estimator_ranks_by_other_targets_and_keeps_new_sources(sources):
    past = records(**{f"t{i}": {"gone": 0.9, "far": 0.8, "scratch": 0.1} for i in range(3)})
    ranking = rank_sources(target(sources, records=past), StandingEstimator())
    assert [line.name for line in ranking.sources] == ["far", "near"]
    assert [line.status for line in ranking.sources] == ["ok", "ok"]
    far, near = (line.estimate for line in ranking.sources)
    assert far.value > near.value == 0
    assert near.standard_error > far.standard_error
    assert (near.low, near.high) == pytest.approx((-1.96 * near.standard_error, 1.96 * near.standard_error))
    assert any("nothing is known of near" in note for note in ranking.notes)


def test_records_of_the_target_itself_count_only_where_asked_for(sources):
    past = records(usps={"near": 0.9, "far": 0.1}, other={"near": 0.4, "far": 0.5})
    ignored, used, unknown = (
        rank_sources(target(sources, name=name, records=past), StandingEstimator(same_target=same))
        for name, same in (("usps", "ignore"), ("usps", "use"), (None, "ignore"))
    )
    assert ignored.best.name == "far"
    assert any("2 records of 'usps' itself are left out" in note for note in ignored.notes)
    assert used.best.name == "near"
    assert used.notes == unknown.notes == ()
    assert unknown.scores() == used.scores()


def test_values_of_the_target_itself_do_not_change_what_is_told_of_it(sources):
    other = {"other": {"near": 0.4, "far": 0.5}, "more": {"near": 0.4, "far": 0.9}}
    told = [
        rank_sources(target(sources, name="usps", records=records(usps={"near": value, "far": 0.1}, **other)), each)
        for each in [StandingEstimator()]
        for value in (0.2, 100.0)
    ]
    assert told[0].scores() == told[1].scores()


def test_the_library_s_own_records_are_the_default(sources):
    for record in records(other={"near": 0.4, "far": 0.5}):
        Library(sources).add_record(record)
    assert rank_sources(target(sources), StandingEstimator()).best.name == "far"


def test_a_library_without_records_ranks_all_alike(sources):
    ranking = rank_sources(target(sources), StandingEstimator())
    assert ranking.scores() == {"far": 0.0, "near": 0.0}
    assert ranking.ties == ["near"]


def test_an_unknown_use_of_the_same_target_is_refused():
    with pytest.raises(ValueError, match="`same_target`"):
        StandingEstimator(same_target="perhaps")
