"""Pipelines: which sources are opened, in which order all of them stand, and what happens if some fail."""

import shutil
from pathlib import Path

import pytest

from feature_sources import BREAKS, REASONS, about, put, put_broken, reading, trained
from pge_lightning.errors import PGEError
from pge_lightning.estimators import Combination, Estimate, FactEstimator, FeatureScore, GapEstimator, Pipeline
from pge_lightning.estimators.default import default_estimator
from pge_lightning.estimators.estimator import of_replicates
from pge_lightning.library import Library
from pge_lightning.probe import PROBES
from pge_lightning.rank import rank_sources
from test_combination import Says
from trainer_helpers import LADDER, failing

NAMES = ["five", "four", "one", "six", "three", "two"]
PLACES = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """Six sources: the target's rule, and five others."""
    library = Library(tmp_path_factory.mktemp("library"))
    for name, place in PLACES.items():
        put(library, name, trained(place - 1, steps=30), data=place - 1)
    return library.root


@pytest.fixture
def library(collected, tmp_path):
    return Library(shutil.copytree(collected, tmp_path / "library"))


def first(**changes):
    """Ranks the sources by their names, 'one' on top."""
    return Says({**{name: float(-place) for name, place in PLACES.items()}, **changes}, name="first")


def then(**changes):
    """Ranks them the other way round."""
    return Says({**{name: float(place) for name, place in PLACES.items()}, **changes}, name="then")


def names_of(ranking, status="ok"):
    return [line.name for line in ranking.sources if line.status == status]


# --- the shortlist


@pytest.mark.parametrize(
    ("shortlist", "listed"), [(1, 1), (2, 2), (4.0, 4), (6, 6), (50, 6), (0.5, 3), (0.3, 1), (0.34, 2), (0.01, 1)]
)
def test_a_number_or_a_fraction_of_the_sources_is_listed(shortlist, listed, library):
    second = then()
    ranking = rank_sources(about(library), Pipeline(first(), second, shortlist))
    assert set(second.asked[-1]) == set(list(PLACES)[:listed])
    assert names_of(ranking) == list(reversed(list(PLACES)[:listed]))
    assert names_of(ranking, "not opened") == list(PLACES)[listed:]


def test_ties_of_the_first_are_listed(library):
    tied = {
        "one": Estimate(10.0, 0.1),
        "two": Estimate(9.9, 0.1),
        "four": Estimate(9.8, 0.1),
        "three": Estimate(1.0, 0.1),
    }
    ranking = rank_sources(about(library), Pipeline(first(**tied), then(), "ties"))
    assert names_of(ranking) == ["four", "two", "one"]
    assert names_of(ranking, "not opened") == ["three", "five", "six"]
    ranking = rank_sources(about(library), Pipeline(first(**tied), then(), "ties", most=2))
    assert names_of(ranking) == ["two", "one"]
    ranking = rank_sources(about(library), Pipeline(first(), then(), "ties"))
    assert names_of(ranking) == ["one"]


def test_the_first_may_find_lower_better(library):
    lower = Says({name: float(place) for name, place in PLACES.items()}, name="first", higher_is_better=False)
    ranking = rank_sources(about(library), Pipeline(lower, then(), 2))
    assert [line.name for line in ranking.sources] == ["two", "one", "three", "four", "five", "six"]


def test_the_second_may_find_lower_better(library):
    draws = {name: of_replicates([place - 0.1, place + 0.3]) for name, place in PLACES.items()}
    lower = Says(draws, name="then", higher_is_better=False)
    pipeline = Pipeline(first(), lower, 3)
    ranking = rank_sources(about(library), pipeline)
    assert names_of(ranking) == ["one", "two", "three"]
    found, plain = ranking.best.estimate, draws["one"]
    assert pipeline.higher_is_better
    assert (found.value, found.standard_error) == (-plain.value, plain.standard_error)
    assert (found.low, found.high) == (-plain.high, -plain.low)
    assert found.replicates == tuple(-draw for draw in plain.replicates)
    assert ranking.sources[0].columns["then"] == plain.value


def test_all_others_stand_below_and_are_tied_with_none(library):
    ranking = rank_sources(about(library), Pipeline(first(), then(**dict.fromkeys(PLACES, 3.0)), 2))
    assert [line.name for line in ranking.sources] == list(PLACES)
    assert ranking.ties == ["two"]
    values = [line.estimate.value for line in ranking.sources]
    assert values[1] > values[2] > values[3] > values[4] > values[5]
    assert set(ranking.columns) == {"first", "then"}
    assert ["then" in line.columns for line in ranking.sources] == [True, True, False, False, False, False]


def test_what_was_opened_is_noted(library):
    ranking = rank_sources(about(library), Pipeline(first(), then(), 2))
    assert ranking.notes == ("Opened 2 of 6 sources: one, two.",)


# --- real sources


def test_only_the_shortlist_is_read(library, monkeypatch):
    with reading(monkeypatch) as read:
        ranking = rank_sources(about(library), Pipeline(GapEstimator(LADDER), FeatureScore(), 2))
    assert sorted(read) == sorted(names_of(ranking))
    assert len(read) == 2
    gaps = rank_sources(about(library), GapEstimator(LADDER))
    assert set(read) == {line.name for line in gaps.sources[:2]}
    assert [line.name for line in ranking.sources[2:]] == [line.name for line in gaps.sources[2:]]
    with reading(monkeypatch) as read:
        rank_sources(about(library), FeatureScore())
    assert sorted(read) == NAMES


def test_the_shortlist_is_ranked_as_the_second_does(library):
    ranking = rank_sources(about(library), Pipeline(GapEstimator(LADDER), FeatureScore(), 3))
    alone = rank_sources(about(library), FeatureScore()).scores()
    assert {line.name: line.estimate.value for line in ranking.sources[:3]} == {
        name: alone[name] for name in names_of(ranking)
    }


def test_a_shortlist_of_one_ranking_does_not_mark_another(library):
    target = about(library)
    rank_sources(target, Pipeline(first(), FeatureScore(), 2))
    ranking = rank_sources(target, FactEstimator())
    assert {line.status for line in ranking.sources} == {"ok"}


# --- sources that fail


def test_one_that_fails_on_the_shortlist_makes_room_for_the_next(library, monkeypatch):
    (file,) = (Path(library.root) / "two").glob("encoder-*")
    file.write_bytes(file.read_bytes()[:-9])
    with reading(monkeypatch) as read:
        ranking = rank_sources(about(library), Pipeline(first(), FeatureScore(), 2))
    assert sorted(read) == ["one", "three", "two"]
    assert sorted(names_of(ranking)) == ["one", "three"]
    assert names_of(ranking, "not opened") == ["four", "five", "six"]
    assert failing(ranking.sources[-1], "SHA-256")
    assert ranking.notes == ("Opened 3 of 6 sources: one, two, three.",)


@pytest.mark.parametrize("shortlist", [2, 0.5, "ties"])
@pytest.mark.parametrize("kind", BREAKS)
def test_the_rest_is_ranked_as_if_it_were_not_there(kind, shortlist, library):
    pipeline = Pipeline(GapEstimator(LADDER, "layerwise", generality=0.0), FeatureScore(), shortlist)
    sound = rank_sources(about(library), pipeline)
    name = put_broken(library, kind, data=0)  # the nearest of all, by its signature
    ranking = rank_sources(about(library), pipeline)
    assert ranking.sources[:-1] == sound.sources
    assert ranking.sources[-1].name == name
    assert failing(ranking.sources[-1], f"{REASONS[kind]}|one shape"), ranking.sources[-1].reason


@pytest.mark.parametrize("kind", BREAKS)
def test_a_combination_does_not_take_a_broken_shortlist_of_one_for_a_silent_score(kind, library):
    plain = GapEstimator(LADDER, "layerwise", generality=0.0)  # by which the broken one stands on top
    together = Combination({"gap": plain, "score": FeatureScore()})
    pipeline = Pipeline(plain, together, 1)
    sound = rank_sources(about(library), pipeline)
    put_broken(library, kind, data=0)
    ranking = rank_sources(about(library), pipeline)
    assert ranking.sources[:-1] == sound.sources
    assert ranking.sources[-1].status == "failed"


@pytest.mark.parametrize("kind", BREAKS)
def test_in_the_default_too_the_rest_is_ranked_as_if_it_were_not_there(kind, library):
    pipeline = default_estimator(LADDER)
    sound = rank_sources(about(library), pipeline)
    put_broken(library, kind, data=0)
    ranking = rank_sources(about(library), pipeline)
    assert ranking.sources[:-1] == sound.sources
    assert ranking.sources[-1].status == "failed"


@pytest.mark.parametrize("count", [1, 2])
def test_the_default_makes_do_with_few_sources_and_what_they_hold(count, library):
    names = list(PLACES)[count:]
    ranking = rank_sources(about(library, exclude=names), default_estimator(LADDER))
    assert ranking.best.name == "one"
    assert "failed" not in {line.status for line in ranking.sources}
    assert any(note.startswith("Left out label_free: ") for note in ranking.notes)


def test_several_that_fail_make_room_for_as_many(library):
    error = PGEError("damaged")
    ranking = rank_sources(about(library), Pipeline(first(three=error), then(one=error, two=error, four=error), 2))
    assert names_of(ranking) == ["six", "five"]
    assert names_of(ranking, "failed") == ["four", "one", "three", "two"]


def test_if_all_fail_each_says_why(library):
    error = PGEError("damaged")
    for pipeline in (
        Pipeline(first(), then(**dict.fromkeys(PLACES, error)), 2),
        Pipeline(first(**dict.fromkeys(PLACES, error)), then(), 2),
    ):
        ranking = rank_sources(about(library), pipeline)
        assert [line.name for line in ranking.sources] == NAMES
        assert all(failing(line, "^damaged$") for line in ranking.sources)
        with pytest.raises(PGEError, match="all 6 failed"):
            _ = ranking.best


# --- arguments


@pytest.mark.parametrize(("least", "listed"), [(1, 1), (4, 4), (50, 6)])
def test_a_fraction_may_be_of_so_few_that_more_are_opened(least, listed, library):
    second = then()
    ranking = rank_sources(about(library), Pipeline(first(), second, 0.3, least=least))
    assert set(second.asked[-1]) == set(list(PLACES)[:listed])
    assert names_of(ranking, "not opened") == list(PLACES)[listed:]


@pytest.mark.parametrize("shortlist", [0, -1, 1.5, "best", "0.3", float("nan"), float("inf")])
def test_a_shortlist_out_of_range_is_refused(shortlist):
    with pytest.raises(ValueError, match=r"`shortlist` to be 'ties', a whole number, or a fraction"):
        Pipeline(FactEstimator(), FeatureScore(), shortlist)


@pytest.mark.parametrize("limit", ["least", "most"])
def test_at_least_or_most_none_is_refused(limit):
    with pytest.raises(ValueError, match=f"`{limit}` to be at least 1, but got 0"):
        Pipeline(FactEstimator(), FeatureScore(), "ties", **{limit: 0})


def test_it_needs_and_costs_what_both_do():
    pipeline = Pipeline(GapEstimator("fast"), Combination({"score": FeatureScore(), "size": FactEstimator()}))
    assert pipeline.needs == {"facts", "inputs", "labels", "signatures", "weights"}
    assert pipeline.cost.startswith(f"{GapEstimator().cost}; on the shortlist, linear_probe: ")
    assert pipeline.probes == [PROBES["fast"]]
    assert pipeline.higher_is_better
