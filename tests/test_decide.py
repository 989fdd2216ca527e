"""Decisions: what each look at scratch says, and what they say together."""

import math

import pandas as pd
import pytest
from rich.console import Console

from pge_lightning.decide import HEAD_START, Decision, Evidence, decide, probe_evidence, race_evidence, records_evidence
from pge_lightning.race import Lane, Race
from pge_lightning.record import Record
from pge_lightning.records import Records


def race_of(*advantages, source="a", reason="", held_to_trained=1 / 3, accurate=False):
    same = tuple(1.0 for _ in advantages)
    own = tuple(1.0 + value if accurate else 1.0 - value for value in advantages)
    accuracies = own if accurate else ()
    lanes = (Lane(source, 50, own, accuracies, advantages, reason), Lane(None, 50, same, same if accurate else ()))
    return Race(lanes, 400, 1.0, "Adam", held_to_trained)


def past(**columns):
    return pd.DataFrame(columns, dtype=float)


class TestDecide:
    def test_without_evidence_the_best_source_is_advised_and_the_words_say_that_nothing_is_known(self):
        decision = decide("a", ["b"])
        assert (decision.source, decision.words, decision.confidence) == ("a", "not known", 0.5)
        assert "nothing is known of starting from scratch" in str(decision)
        assert "tied with b" in str(decision)

    def test_log_odds_add_up(self):
        decision = decide("a", evidence=[Evidence(math.log(2), "x"), None, Evidence(math.log(3), "y")])
        assert decision.confidence == pytest.approx(6 / 7)
        assert decision.reasons == ("x", "y")

    def test_evidence_against_the_source_advises_scratch_and_keeps_the_sources_name(self):
        decision = decide("a", evidence=[Evidence(-math.log(9), "x")])
        assert (decision.source, decision.best) == (None, "a")
        assert decision.confidence == pytest.approx(0.9)
        assert str(decision).startswith("Start from scratch, not from 'a' (likely, 0.90).")

    @pytest.mark.parametrize(
        ("chance", "words"),
        [(0.5, "about even"), (0.59, "about even"), (0.6, "rather likely"), (0.76, "likely"), (0.96, "very likely")],
    )
    def test_words_follow_the_number_whichever_way_the_advice_goes(self, chance, words):
        odds = math.log(chance / (1 - chance)) + 1e-9
        assert decide("a", evidence=[Evidence(odds, "")]).words == words
        assert decide("a", evidence=[Evidence(-odds, "")]).words == words

    def test_is_printed_by_rich_as_it_is_as_text(self):
        decision = decide("a", ["b"], [Evidence(1.0, "race: [4 of 4]")])
        console = Console(width=120)
        with console.capture() as printed:
            console.print(decision)
        assert [line.rstrip() for line in printed.get().splitlines()] == str(decision).splitlines()

    def test_cannot_be_changed(self):
        with pytest.raises(AttributeError):
            decide("a").source = "b"
        assert isinstance(decide("a"), Decision)


class TestProbe:
    def test_features_no_better_than_random_ones_speak_against_more_than_better_ones_speak_for(self):
        better = probe_evidence([0.8, 0.82, 0.81], [0.5, 0.51, 0.52])
        worse = probe_evidence([0.5, 0.51, 0.52], [0.8, 0.82, 0.81])
        assert 0 < better.log_odds < -worse.log_odds

    def test_equal_features_say_nothing(self):
        assert probe_evidence([0.5, 0.6], [0.5, 0.6]).log_odds == 0

    def test_folds_that_all_differ_alike_count_as_clear(self):
        assert probe_evidence([0.75, 0.5], [0.5, 0.25]).log_odds == probe_evidence([0.99, 0.01], [0.98, 0.0]).log_odds

    def test_draws_of_the_random_encoder_are_averaged_fold_by_fold(self):
        found = probe_evidence([0.5, 0.6], [[0.4, 0.7], [0.6, 0.5]])
        assert found.log_odds == probe_evidence([0.5, 0.6], [0.5, 0.6]).log_odds
        assert "55.0 % with its features, 55.0 % with random ones" in found.text

    def test_noisy_folds_say_less_than_quiet_ones(self):
        quiet = probe_evidence([0.50, 0.51, 0.52], [0.53, 0.54, 0.56])
        noisy = probe_evidence([0.20, 0.51, 0.82], [0.53, 0.54, 0.56])
        assert quiet.log_odds < noisy.log_odds < 0

    def test_a_single_fold_is_none(self):
        assert probe_evidence([0.5], [0.4]) is None

    def test_other_folds_are_refused(self):
        with pytest.raises(ValueError, match="same folds"):
            probe_evidence([0.5, 0.6], [0.5, 0.6, 0.7])


class TestRecords:
    def test_shrinks_the_sources_share_towards_that_of_all(self):
        # All sources: (6 * 0.9 + 1) / (6 + 2) = 0.8; the last of ten lost everywhere: (0 + 20 * 0.8) / (6 + 20).
        scores = past(**{f"s{i}": [0.9] * 6 for i in range(9)}, z=[0.7] * 6, scratch=[0.8] * 6)
        assert records_evidence(scores, "z").log_odds == pytest.approx(math.log(16 / 10))

    def test_is_no_surer_than_it_would_have_been_right(self):
        # Ten targets foretell each other but for one, on which all sources lost: (9 + 1) / (10 + 2).
        scores = past(a=[0.9] * 9 + [0.7], b=[0.9] * 9 + [0.7], scratch=[0.8] * 10)
        found = records_evidence(scores, "a")
        assert found.log_odds == pytest.approx(math.log(10 / 2))
        assert "right so far: 83 %" in found.text

    def test_a_past_that_foretells_nothing_says_nothing(self):
        # Each target is the opposite of most others.
        scores = past(a=[0.9, 0.9, 0.7, 0.7], b=[0.9, 0.9, 0.7, 0.7], scratch=[0.8] * 4)
        assert records_evidence(scores, "a").log_odds == 0
        # One target has nothing to be foretold from.
        assert records_evidence(past(a=[0.9], scratch=[0.8]), "a").log_odds == 0

    def test_conditions_of_one_target_do_not_foretell_each_other(self):
        one = pd.MultiIndex.from_tuples([("x", "acc", "1"), ("x", "acc", "2")], names=["target", "metric", "settings"])
        two = pd.MultiIndex.from_tuples([("x", "acc", "1"), ("y", "acc", "1")], names=["target", "metric", "settings"])
        scores = past(a=[0.9, 0.9], scratch=[0.8, 0.8])
        assert records_evidence(scores.set_index(one), "a").log_odds == 0
        assert records_evidence(scores.set_index(two), "a").log_odds == pytest.approx(math.log(3))

    def test_equal_results_count_half(self):
        found = records_evidence(past(a=[0.8, 0.8], scratch=[0.8, 0.8]), "a")
        assert found.log_odds == 0
        assert "on 1 of 2 other targets" in found.text

    def test_an_unknown_source_stands_with_all_others(self):
        found = records_evidence(past(a=[0.9, 0.9], b=[0.9, 0.9], scratch=[0.8, 0.8]), "new")
        assert found.log_odds == pytest.approx(math.log(3))
        assert "never tried beside 'new'" in found.text

    def test_pairs_that_were_not_tried_do_not_count(self):
        scores = past(a=[0.9, math.nan, 0.9], b=[0.7, 0.6, 0.9], scratch=[0.8, 0.7, math.nan])
        assert (
            "on 1 of 1 other targets, by 0.1 in the median; all sources on 25 %" in records_evidence(scores, "a").text
        )

    @pytest.mark.parametrize("columns", [{"a": [0.9]}, {"a": [math.nan], "scratch": [0.9]}, {"scratch": [0.9]}])
    def test_without_a_comparison_with_scratch_there_is_none(self, columns):
        assert records_evidence(past(**columns), "a") is None

    def test_takes_what_the_librarys_records_give(self):
        values = {("a", "x"): 0.2, ("scratch", "x"): 0.3, ("a", "y"): 0.25, ("scratch", "y"): 0.5}
        records = Records(Record(*pair, "loss", value, higher_is_better=False) for pair, value in values.items())
        assert "'a' beat scratch on 2 of 2 other targets, by 0.175" in records_evidence(records.scores(), "a").text


class TestRace:
    def test_a_lower_loss_speaks_for_the_source_and_a_higher_one_as_much_against(self):
        won, lost = race_evidence(race_of(0.3, 0.1, 0.2), "a"), race_evidence(race_of(-0.3, -0.1, -0.2), "a")
        assert won.log_odds + HEAD_START == pytest.approx(-lost.log_odds - HEAD_START)
        assert won.log_odds > 0
        assert "loss was 0.2 lower than that of scratch; better on 3 of 3 splits" in won.text
        assert "loss was 0.2 higher than that of scratch; better on 0 of 3 splits" in lost.text

    def test_accuracies_have_no_head_start(self):
        won, lost = (race_evidence(race_of(*x, accurate=True), "a") for x in ((0.3, 0.1, 0.2), (-0.3, -0.1, -0.2)))
        assert won.log_odds == pytest.approx(-lost.log_odds)
        assert won.log_odds == pytest.approx(race_evidence(race_of(0.3, 0.1, 0.2), "a").log_odds + HEAD_START)
        assert "accuracy was 20.0 % higher than that of scratch; better on 3 of 3 splits" in won.text
        assert "accuracy was 20.0 % lower than that of scratch; better on 0 of 3 splits" in lost.text

    def test_equals_the_corrected_t_test_by_hand(self):
        # Mean 0.1, variance 0.01, error sqrt((1/3 + 1/3) * 0.01), t = sqrt(1.5) with two degrees of freedom.
        chance = 0.5 + math.sqrt(1.5) / (2 * math.sqrt(2 + 1.5))
        odds = math.log(chance / (1 - chance))
        assert race_evidence(race_of(0.2, 0.0, 0.1), "a").log_odds == pytest.approx(odds - HEAD_START)

    def test_smaller_trained_parts_make_it_less_sure(self):
        small, large = (race_evidence(race_of(0.3, 0.1, 0.2, held_to_trained=x), "a") for x in (1.0, 0.1))
        assert 0 < small.log_odds < large.log_odds

    def test_is_bounded_where_all_splits_agree(self):
        found = race_evidence(race_of(*[0.5, 0.5000001] * 4), "a")
        assert 0.85 < decide("a", evidence=[found]).confidence < 0.95

    def test_sources_that_did_not_race_or_failed_have_none(self):
        assert race_evidence(race_of(0.1, 0.2), "b") is None
        assert race_evidence(race_of(source="a", reason="no file"), "a") is None
