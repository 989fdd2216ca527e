"""Combinations: standardised votes, weights, members that have nothing to say, and sources that fail."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from feature_sources import about, library_of, net, trained
from pge_lightning.errors import PGEError, SilentError
from pge_lightning.estimators import Combination, Estimate, FactEstimator, FeatureScore, GapEstimator, RandomOrder
from pge_lightning.estimators.combination import reliability, standardised
from pge_lightning.estimators.estimator import of_replicates
from pge_lightning.probe import PROBES
from pge_lightning.rank import rank_sources
from trainer_helpers import failing, make_data

NAMES = ["a", "b", "c"]


@dataclass(frozen=True)
class Says:
    """Says what it was given; remembers what it was asked."""

    found: Mapping[str, float | Estimate | Exception]
    name: str = "says"
    higher_is_better: bool = True
    needs: frozenset[str] = frozenset()
    cost: str = "nothing"
    asked: list[list[str]] = field(default_factory=list, compare=False)

    def estimate(self, target, sources):
        self.asked.append(list(sources))
        each = {name: self.found[name] for name in sources}
        return {name: Estimate(value) if isinstance(value, float) else value for name, value in each.items()}


@dataclass(frozen=True)
class Relative(Says):
    """Says how a source compares with the mean of those it is asked about."""

    def estimate(self, target, sources):
        self.asked.append(list(sources))
        mean = sum(self.found[name] for name in sources) / len(sources)
        return {name: Estimate(self.found[name] - mean) for name in sources}


@dataclass(frozen=True)
class Silent(Says):
    """Cannot say anything of this target."""

    def estimate(self, target, sources):
        raise PGEError("there are no labels")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return library_of(tmp_path_factory.mktemp("library"), **{name: net(0) for name in NAMES})


def says(*values, **options):
    return Says(dict(zip(NAMES, values, strict=True)), **options)


def values_of(found):
    return [found[name].value for name in NAMES]


# 1, 2 and 6 lie at -2, -1 and 3 of their mean, and spread by the root of (4 + 1 + 9) / 3 over the sources.
Z = [-2 / math.sqrt(14 / 3), -1 / math.sqrt(14 / 3), 3 / math.sqrt(14 / 3)]
# 5, 5 and 2 lie at 1, 1 and -2 of theirs, and spread by the root of 2.
OTHER = [1 / math.sqrt(2), 1 / math.sqrt(2), -2 / math.sqrt(2)]


class TestStandardised:
    def test_values_by_hand(self):
        found = standardised({name: Estimate(value) for name, value in zip(NAMES, [1.0, 2.0, 6.0], strict=True)})
        assert [found[name][0] for name in NAMES] == pytest.approx(Z)
        assert [found[name][1] for name in NAMES] == [0.0, 0.0, 0.0]

    def test_errors_are_in_the_same_unit(self):
        found = standardised({"a": Estimate(1.0, 0.5), "b": Estimate(3.0, 0.25)})
        assert found == {"a": (-1.0, 0.5), "b": (1.0, 0.25)}

    def test_draws_are_centred_one_by_one(self):
        # What the draws have in common, 0 or 10, says nothing of the place of either.
        draws = {"a": (0.0, 10.0, 0.0), "b": (2.0, 12.0, 2.0)}
        found = standardised({name: of_replicates(values) for name, values in draws.items()})
        assert found["a"] == pytest.approx((-1, 0))
        assert found["b"] == pytest.approx((1, 0))
        # Differences of 1, 2 and 3 from draw to draw: either stands half of them from the middle.
        found = standardised({"a": of_replicates([0.0, 0.0, 0.0]), "b": of_replicates([1.0, 2.0, 3.0])})
        assert found["a"] == pytest.approx((-1, 0.5 / math.sqrt(3)))
        assert found["b"] == pytest.approx((1, 0.5 / math.sqrt(3)))

    def test_draws_that_depend_on_each_other_keep_the_error_that_is_said_of_them(self):
        plain = {"a": of_replicates([0.0, 0.3, 0.1]), "b": of_replicates([1.0, 2.1, 3.0])}
        said = {name: replace(each, standard_error=3 * each.standard_error) for name, each in plain.items()}
        for name, (value, error) in standardised(plain).items():
            assert standardised(said)[name] == (value, pytest.approx(3 * error))

    def test_other_numbers_of_draws_are_taken_for_independent(self):
        near, far = of_replicates([1.0, 2.0]), of_replicates([3.0, 4.0, 5.0])
        found = standardised({"a": near, "b": far})
        scale = (far.value - near.value) / 2
        assert found["a"][1] == pytest.approx(near.standard_error / scale)
        assert found["b"][1] == pytest.approx(far.standard_error / scale)

    def test_equal_values_say_nothing(self):
        assert standardised({"a": Estimate(3.0), "b": Estimate(3.0)}) == {"a": (0.0, 0.0), "b": (0.0, 0.0)}
        assert standardised({"a": Estimate(3.0, 1.0)}) == {"a": (0.0, 0.0)}

    def test_of_none_there_are_none(self):
        assert standardised({}) == {}
        assert standardised({"a": PGEError("failed")}) == {}


class TestReliability:
    def test_is_the_share_of_the_spread_that_is_no_noise(self):
        assert reliability({"a": (-1.0, 0.5), "b": (1.0, 1.0)}) == pytest.approx(1 - (0.25 + 1) / 2)
        assert reliability({"a": (-1.0, 0.0), "b": (1.0, 0.0)}) == 1

    def test_is_none_where_values_do_not_differ(self):
        assert reliability({"a": (0.0, 0.0), "b": (0.0, 0.0)}) == reliability({}) == 0

    def test_falls_with_the_noise(self):
        noises = [reliability({"a": (-1.0, error), "b": (1.0, error)}) for error in (0.0, 0.1, 0.9, 1.0, 10.0)]
        assert noises == sorted(noises, reverse=True)
        assert noises[2] > noises[3] == noises[4] == 0


class TestSum:
    def test_is_that_of_standardised_values(self, library):
        combined = Combination({"x": says(1.0, 2.0, 6.0), "y": says(5.0, 5.0, 2.0, name="other")})
        found = combined.estimate(about(library), NAMES)
        assert values_of(found) == pytest.approx([z + other for z, other in zip(Z, OTHER, strict=True)])
        assert sum(values_of(found)) == pytest.approx(0)

    def test_turns_what_is_better_when_lower(self, library):
        lower = says(5.0, 5.0, 2.0, name="other", higher_is_better=False)
        found = Combination({"x": says(1.0, 2.0, 6.0), "y": lower}).estimate(about(library), NAMES)
        assert values_of(found) == pytest.approx([z - other for z, other in zip(Z, OTHER, strict=True)])

    def test_weighs(self, library):
        members = {"x": says(1.0, 2.0, 6.0), "y": says(5.0, 5.0, 2.0, name="other")}
        found = Combination(members, {"y": 0.25}).estimate(about(library), NAMES)
        assert values_of(found) == pytest.approx([z + 0.25 * other for z, other in zip(Z, OTHER, strict=True)])
        found = Combination(members, {"x": 0.0, "y": 2.0}).estimate(about(library), NAMES)
        assert values_of(found) == pytest.approx([2 * other for other in OTHER])

    def test_does_not_depend_on_units(self, library):
        plain = Combination({"x": says(1.0, 2.0, 6.0), "y": says(5.0, 5.0, 2.0, name="other")})
        scaled = Combination({"x": says(103.0, 106.0, 118.0), "y": says(0.05, 0.05, 0.02, name="other")})
        first, second = (each.estimate(about(library), NAMES) for each in (plain, scaled))
        assert values_of(first) == pytest.approx(values_of(second))

    def test_errors_add_up_as_independent_ones(self, library):
        x = Says({"a": Estimate(1.0, 0.3), "b": Estimate(3.0, 0.3)})
        y = Says({"a": Estimate(10.0, 4.0), "b": Estimate(30.0, 4.0)}, name="other")
        found = Combination({"x": x, "y": y}, {"y": 0.5}).estimate(about(library), ["a", "b"])
        assert found["b"].value == pytest.approx(1 + 0.5)
        assert found["b"].standard_error == pytest.approx(math.hypot(0.3, 0.5 * 0.4))
        assert found["b"].high - found["b"].value == pytest.approx(1.96 * found["b"].standard_error, rel=1e-3)
        assert found["b"].value - found["b"].low == pytest.approx(found["b"].high - found["b"].value)

    def test_votes_may_count_by_their_reliability(self, library):
        x = Says({"a": Estimate(1.0, 0.3), "b": Estimate(3.0, 0.3)})
        y = Says({"a": Estimate(10.0, 5.0), "b": Estimate(30.0, 5.0)}, name="other")
        z = Says({"a": Estimate(10.0, 40.0), "b": Estimate(30.0, 40.0)}, name="noise")
        target = about(library)
        found = Combination({"x": x, "y": y, "z": z}, {"y": 0.5}, hedge=["y", "z"]).estimate(target, ["a", "b"])
        share = 0.5 * (1 - 0.5**2)
        assert found["b"].value == pytest.approx(1 + share)  # of noise nothing is left
        assert found["b"].standard_error == pytest.approx(math.hypot(0.3, 0.5 * share))
        told = "counts {} of its vote: that much of its spread is more than noise."
        assert target.notes == [f"other {told.format('75%')}", f"noise {told.format('0%')}"]

    def test_who_is_hedged_has_a_say(self):
        with pytest.raises(ValueError, match=r"`hedge` to name some of \['x'\], but got \['y'\]"):
            Combination({"x": says(1.0, 2.0, 6.0)}, hedge=["y"])

    def test_values_are_standardised_over_all_that_were_judged(self, library):
        target = about(library)
        x = says(1.0, 2.0, 6.0)
        target.judge(x, NAMES)
        found = Combination({"x": x}).estimate(target, ["a", "b"])
        assert [found[name].value for name in ("a", "b")] == pytest.approx(Z[:2])
        assert Combination({"x": x}).estimate(about(library), ["a", "b"])["a"].value == pytest.approx(-1)

    def test_without_any_error_there_is_no_interval(self, library):
        found = Combination({"x": says(1.0, 2.0, 6.0)}).estimate(about(library), NAMES)
        assert all(math.isnan(found[name].standard_error) for name in NAMES)
        assert math.isnan(found["a"].low)

    def test_members_stand_in_columns(self, library):
        combined = Combination({"x": says(1.0, 2.0, 6.0), "y": says(5.0, 5.0, 2.0, name="other")})
        ranking = rank_sources(about(library), combined)
        assert ranking.columns == ["says", "other"]
        assert {line.name: dict(line.columns)["says"] for line in ranking.sources} == {"a": 1.0, "b": 2.0, "c": 6.0}
        assert [line.name for line in ranking.sources] == ["b", "c", "a"]


class TestSilentMembers:
    def test_are_left_out_with_a_note(self, library):
        target = about(library)
        alone = Combination({"x": says(1.0, 2.0, 6.0)}).estimate(about(library), NAMES)
        combined = Combination({"x": says(1.0, 2.0, 6.0), "y": Silent({}, name="mute")})
        assert combined.estimate(target, NAMES) == alone
        assert target.notes == ["Left out mute: there are no labels"]

    def test_so_are_those_that_fail_for_every_source(self, library):
        target = about(library)
        failing_always = Says(dict.fromkeys(NAMES, ValueError("no classes")), name="mute")
        combined = Combination({"y": failing_always, "x": says(1.0, 2.0, 6.0)})
        found = combined.estimate(target, NAMES)
        assert values_of(found) == pytest.approx(Z)
        assert target.notes == ["Left out mute: no classes"]

    def test_so_are_those_that_have_nothing_to_say_of_any_source(self, library):
        mute = Says({name: SilentError(f"nothing is known of {name}") for name in NAMES}, name="mute")
        for names in (NAMES, ["a"]):
            target = about(library)
            found = Combination({"y": mute, "x": says(1.0, 2.0, 6.0)}).estimate(target, names)
            assert all(isinstance(each, Estimate) for each in found.values())
            assert target.notes == ["Left out mute: nothing is known of a"]

    def test_who_has_something_to_say_of_others_is_not_silent(self, library):
        error = SilentError("nothing is known of a")
        target = about(library)
        some = Says({"a": error, "b": 1.0, "c": 2.0}, name="some")
        found = Combination({"y": some, "x": says(1.0, 2.0, 6.0)}).estimate(target, NAMES)
        assert found["a"] is error
        assert isinstance(found["b"], Estimate)
        assert target.notes == []

    def test_different_reasons_are_those_of_the_sources(self, library):
        errors = {name: PGEError(f"the file of {name} is damaged") for name in NAMES}
        target = about(library)
        found = Combination({"x": says(1.0, 2.0, 6.0), "y": Says(errors, name="other")}).estimate(target, NAMES)
        assert found == errors
        assert target.notes == []

    def test_a_single_source_fails_for_itself(self, library):
        error = PGEError("its weights are damaged")
        target = about(library)
        found = Combination({"x": says(1.0, 2.0, 6.0), "y": Says({"a": error}, name="other")}).estimate(target, ["a"])
        assert found == {"a": error}
        assert target.notes == []

    def test_an_error_of_the_program_is_none_of_theirs(self, library):
        class Broken(Silent):
            def estimate(self, target, sources):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            Combination({"x": says(1.0, 2.0, 6.0), "y": Broken({}, name="broken")}).estimate(about(library), NAMES)

    def test_where_all_are_silent_nothing_can_be_said(self, library):
        with pytest.raises(PGEError, match=r"none could.*there are no labels"):
            Combination({"x": Silent({}), "y": Silent({}, name="mute")}).estimate(about(library), NAMES)

    def test_real_ones_where_a_target_has_no_labels(self, library):
        inputs = list(make_data().tensors[0].split(16))
        members = {"score": FeatureScore(), "size": FactEstimator()}
        ranking = rank_sources(about(library, inputs), Combination(members))
        assert [line.status for line in ranking.sources] == ["ok"] * 3
        assert ranking.notes[0].startswith("Left out linear_probe: Expected one class number per sample")
        assert len(ranking.notes) == 1


class TestSourcesThatFail:
    def test_fail_in_the_sum_and_take_no_part_in_the_others(self, library):
        error = PGEError("its weights are damaged")
        x, y = Says({"a": 1.0, "b": 2.0, "c": 6.0}), Says({"a": 5.0, "b": error, "c": 2.0}, name="other")
        found = Combination({"x": x, "y": y}).estimate(about(library), NAMES)
        assert found["b"] is error
        alone = Combination({"x": x, "y": y}).estimate(about(library), ["a", "c"])
        assert {name: found[name] for name in ("a", "c")} == alone
        assert (found["a"].value, found["c"].value) == pytest.approx((0.0, 0.0))

    def test_estimators_that_look_at_all_sources_are_asked_anew(self, library):
        x = Relative({"a": 1.0, "b": 20.0, "c": 6.0})
        y = Says({"a": 5.0, "b": PGEError("damaged"), "c": 3.0}, name="other")
        target = about(library)
        Combination({"x": x, "y": y}).estimate(target, NAMES)
        assert x.asked == [NAMES, ["a", "c"]]
        assert target.columns["says"] == {"a": Estimate(-2.5), "c": Estimate(2.5)}

    def test_so_are_combinations_inside(self, library):
        x = Relative({"a": 1.0, "b": 20.0, "c": 6.0})
        y = Says({"a": 5.0, "b": PGEError("damaged"), "c": 3.0}, name="other", needs=frozenset({"weights"}))
        z = says(7.0, 1.0, 2.0, name="third")
        nested = Combination({"z": z, "inner": Combination({"x": x, "y": y}, name="inner")})
        found = nested.estimate(about(library), NAMES)
        assert {name: found[name] for name in ("a", "c")} == nested.estimate(about(library), ["a", "c"])
        assert isinstance(found["b"], PGEError)

    def test_a_source_that_failed_is_not_shown_to_those_that_come_later(self, library):
        later = Says({"a": 1.0, "b": 2.0, "c": 6.0}, name="later")
        first = Says({"a": PGEError("damaged"), "b": 1.0, "c": 2.0})
        found = Combination({"x": first, "y": later}).estimate(about(library), NAMES)
        assert later.asked[0] == ["b", "c"]
        assert isinstance(found["a"], PGEError)

    def test_if_all_fail_by_turns_none_is_left(self, library):
        error = PGEError("damaged")
        x = Says({"a": error, "b": error, "c": 1.0})
        y = Says({"c": error}, name="other")
        ranking = rank_sources(about(library), Combination({"x": x, "y": y}))
        assert ranking.scores() == {"c": 0.0} or all(failing(line, "damaged") for line in ranking.sources)


class TestArguments:
    def test_null_entries_are_left_out(self, library):
        combined = Combination({"x": says(1.0, 2.0, 6.0), "y": None})
        assert list(combined.members) == ["x"]
        assert values_of(combined.estimate(about(library), NAMES)) == pytest.approx(Z)

    def test_it_needs_and_costs_what_its_members_do(self):
        combined = Combination({"gap": GapEstimator("fast"), "score": FeatureScore(), "none": None})
        assert combined.needs == {"inputs", "labels", "signatures", "weights"}
        assert combined.cost == f"gap: {GapEstimator().cost}; linear_probe: {FeatureScore().cost}"
        assert combined.probes == [PROBES["fast"]]
        assert combined.higher_is_better
        assert Combination({"x": says(1.0, 2.0, 3.0)}, name="both").name == "both"

    @pytest.mark.parametrize("members", [{}, {"gap": None}, {"none": RandomOrder()}])
    def test_nothing_to_combine_is_refused(self, members):
        with pytest.raises(ValueError, match="at least one of `estimators` with a weight other than 0, but got none"):
            Combination(members, {"none": 0.0} if "none" in members else {})

    def test_a_weight_of_zero_leaves_an_estimator_out(self):
        one, other = says(1.0, 2.0, 3.0), GapEstimator("fast")
        assert Combination({"x": one, "y": other}, {"y": 0.0}).members == {"x": one}

    def test_two_of_one_name_are_refused(self):
        with pytest.raises(ValueError, match=r"different names, but got \['gap', 'gap'\]\. Give one of them a `name`"):
            Combination({"a": GapEstimator("fast"), "b": GapEstimator("fast", kind="unit")})

    @pytest.mark.parametrize("weight", [-math.inf, math.inf, math.nan])
    def test_a_weight_out_of_range_is_refused(self, weight):
        with pytest.raises(ValueError, match=f"weight of 'x' to be finite, but got {weight}"):
            Combination({"x": says(1.0, 2.0, 3.0)}, {"x": weight})

    def test_a_weight_of_nothing_is_refused(self):
        with pytest.raises(ValueError, match=r"for some of \['x'\], but got one for 'y'"):
            Combination({"x": says(1.0, 2.0, 3.0)}, {"y": 1.0})


def test_a_better_score_and_a_fact_together_choose(tmp_path):
    library = library_of(tmp_path, other=trained(5), same=trained(0))
    ranking = rank_sources(about(library), Combination({"score": FeatureScore(), "size": FactEstimator()}))
    assert ranking.best.name == "same"
    assert ranking.columns == ["linear_probe", "source_size"]
