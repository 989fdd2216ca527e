import json

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from scipy import optimize

from pge_lightning.app.build import build_estimator
from pge_lightning.errors import PGEError
from pge_lightning.estimators.baselines import FactEstimator
from pge_lightning.estimators.combination import Combination
from pge_lightning.estimators.feature_score import FeatureScore
from pge_lightning.estimators.learned import LearnedCombination
from pge_lightning.estimators.standing import StandingEstimator
from pge_lightning.estimators.target import Target
from pge_lightning.functional.learned import learn_weights
from pge_lightning.library import Library
from pge_lightning.rank import rank_sources
from pge_lightning.record import Record
from pge_lightning.records import Records
from trainer_helpers import Net, make_loader

MEMBERS = {"size": FactEstimator("source_size"), "metric": FactEstimator("source_metric")}


def world(targets=12, sources=8, seed=0):
    """What fine-tuning gave, an estimator that knows it, and one that knows nothing."""
    rng = np.random.default_rng(seed)
    truth = pd.DataFrame(rng.normal(size=(targets, sources)), index=[f"t{i}" for i in range(targets)])
    known = truth + 0.3 * rng.normal(size=truth.shape)
    return truth, known, pd.DataFrame(rng.normal(size=truth.shape), index=truth.index)


def past(targets=8, sources=("near", "far", "third"), settings=None):
    """Records on which size is worth nothing, and a lower own metric is never better."""
    rng = np.random.default_rng(0)
    for number in range(targets):
        for source, value in zip(sources, rng.permutation(len(sources)), strict=True):
            estimates = {"source_size": float(rng.normal()), "source_metric": float(value) / 10}
            name = f"t{number}"
            yield Record(source, name, "acc", float(value), settings=settings or {}, estimates=estimates, created=None)


def learner(members, weights=None):
    return LearnedCombination(Combination(members, weights or {}))


def target(folder, records, **options):
    return Target(Net(), make_loader(), Library(folder), encoder="encoder", cache=False, records=records, **options)


def test_an_estimator_that_knows_outweighs_one_that_does_not():
    truth, known, noise = world()
    learned = learn_weights(truth, {"known": known, "noise": noise}, {"known": 1.0, "noise": 1.0})
    assert learned.used
    assert learned.targets == 12
    assert learned.gain > 2 * learned.standard_error > 0
    assert learned.weights["known"] > 3 * learned.weights["noise"] >= 0


def test_weights_solve_the_penalised_problem():
    truth, known, noise = world()
    learned = learn_weights(truth, {"known": known, "noise": noise}, {"known": 1.0, "noise": 1.0})

    def scaled(table, ddof):
        return table.sub(table.mean(axis=1), axis="index").div(table.std(axis=1, ddof=ddof), axis="index").to_numpy()

    x = np.stack([scaled(known, 0), scaled(noise, 0)], axis=-1)
    deviations = truth.sub(truth.mean(axis=1), axis="index").to_numpy()
    squares = (deviations**2).sum(axis=1)
    y = deviations / np.sqrt((squares + squares.sum() / 84) / 8)[:, None]
    plain = x.sum(axis=-1)
    factor = (plain * y).sum() / (plain**2).sum()
    found = optimize.minimize(
        lambda w: ((x @ w - y) ** 2).sum() / 8 + 3 * ((w - factor) ** 2).sum(), [0.5, 0.5], bounds=[(0, None)] * 2
    )
    assert list(learned.weights.values()) == pytest.approx(found.x, abs=1e-4)


def test_an_estimator_that_is_wrong_gets_no_negative_weight():
    truth, known, _ = world()
    learned = learn_weights(truth, {"known": known, "wrong": -known}, {"known": 1.0, "wrong": 0.2})
    assert min(learned.weights.values()) >= 0


def test_without_a_plain_weight_either_sign_can_be_learned():
    truth, known, noise = world()
    learned = learn_weights(truth, {"noise": noise, "wrong": -known}, {"noise": 1.0, "wrong": 0.0})
    assert learned.used
    assert learned.weights["wrong"] < -0.5


def test_plain_weights_stay_where_learning_does_not_help():
    truth, known, _ = world()
    plain = {"known": 2.0, "same": 1.0}
    learned = learn_weights(truth, {"known": known, "same": known}, plain)
    assert not learned.used
    assert learned.weights == plain
    assert learned.gain == 0


def test_few_targets_are_not_learned_from():
    truth, known, noise = world(targets=4)
    learned = learn_weights(truth, {"known": known, "noise": noise}, {"known": 1.0, "noise": 1.0})
    assert (learned.used, learned.targets, learned.weights) == (False, 4, {"known": 1.0, "noise": 1.0})
    assert np.isnan(learned.gain)
    assert learn_weights(truth, {"known": known, "noise": noise}, {"known": 1.0, "noise": 1.0}, least=4).used


def test_targets_of_which_an_estimator_told_nothing_do_not_count():
    truth, known, noise = world()
    noise.iloc[3:] = np.nan
    learned = learn_weights(truth, {"known": known, "noise": noise}, {"known": 1.0, "noise": 1.0})
    assert learned.targets == 3


def test_a_standing_is_learned_from_without_the_target_that_it_is_judged_by():
    """Chance gives the standing of a source on this very target a high worth, and on others none."""
    rng = np.random.default_rng(0)
    truth = pd.DataFrame(rng.normal(size=(40, 6)))
    known = truth + rng.normal(size=truth.shape)
    learned = learn_weights(truth, {"known": known}, {"known": 1.0, "standing": 1.0}, standing="standing")
    assert learned.used
    assert learned.weights["known"] > 5 * learned.weights["standing"]


def test_a_standing_that_tells_something_has_a_weight():
    rng = np.random.default_rng(0)
    truth = pd.DataFrame(rng.normal(size=(20, 6)) * 0.5 + rng.normal(size=6))
    noise = pd.DataFrame(rng.normal(size=truth.shape))
    learned = learn_weights(truth, {"noise": noise}, {"noise": 1.0, "standing": 1.0}, standing="standing")
    assert learned.used
    assert learned.weights["standing"] > 3 * learned.weights["noise"]


def test_the_combination_takes_learned_weights_and_says_so(sources):
    target_ = target(sources, Records(past()))
    ranking = rank_sources(target_, learner(MEMBERS))
    details = ranking.details["learned"]
    assert details["used"]
    assert details["targets"] == 8
    assert details["weights"]["metric"] > 3 * details["weights"]["size"]
    assert any("learned weights (size" in note and "8 past targets" in note for note in ranking.notes)
    weighed = rank_sources(target(sources, Records(past())), Combination(MEMBERS, details["weights"], "learned"))
    assert ranking.scores() == weighed.scores()


def test_the_combination_falls_back_to_the_given_weights_and_says_why(sources):
    given = {"size": 2.0}
    ranking = rank_sources(target(sources, Records(past(3))), learner(MEMBERS, given))
    assert not ranking.details["learned"]["used"]
    assert ranking.details["learned"]["gain"] is None
    assert any("only 3 past targets" in note and "5 are needed" in note for note in ranking.notes)
    assert ranking.scores() == rank_sources(target(sources, Records()), Combination(MEMBERS, given)).scores()


def test_the_combination_says_when_learned_weights_were_no_better(sources):
    members = {"metric": MEMBERS["metric"]}
    ranking = rank_sources(target(sources, Records(past())), learner(members))
    assert any("the given weights, because learned ones changed" in note for note in ranking.notes)


def test_records_of_the_target_itself_are_not_learned_from(sources):
    ranking = rank_sources(target(sources, Records(past()), name="t3"), learner(MEMBERS))
    assert ranking.details["learned"]["targets"] == 7


def test_facts_are_looked_up_where_records_hold_none(sources):
    """The larger source was always better: that is learned from the library's facts, and ranks it first."""
    sizes = {"near": 10, "far": 30}
    for name, samples in sizes.items():
        file = sources / name / "source.json"
        content = json.loads(file.read_text())
        content["facts"]["samples"] = samples
        file.write_text(json.dumps(content))
    records = Records(
        Record(source, f"t{number}", "acc", samples / 100, estimates={"source_metric": float(number % 2 == index)})
        for number in range(8)
        for index, (source, samples) in enumerate(sizes.items())
    )
    ranking = rank_sources(target(sources, records), learner(MEMBERS, {"size": 0.0}))
    weights = ranking.details["learned"]["weights"]
    assert weights["size"] > weights["metric"] >= 0
    assert ranking.best.name == "far"


def test_what_is_known_of_no_source_and_has_no_say_is_no_reason_not_to_learn(sources):
    members = {**MEMBERS, "other": FeatureScore("log_me")}
    learned = learner(members, {"other": 0.0}).learn(Records(past()))
    assert learned.used
    assert learned.weights["other"] == 0


def test_the_standing_needs_no_recorded_estimate(sources):
    members = {**MEMBERS, "past": StandingEstimator(), "none": None}
    ranking = rank_sources(target(sources, Records(past())), learner(members))
    assert ranking.details["learned"]["targets"] == 8
    assert list(ranking.details["learned"]["weights"]) == ["size", "metric", "past"]
    assert "standing" in ranking.columns


def test_estimates_where_lower_is_better_are_turned():
    learned = learner({"size": MEMBERS["size"], "metric": Misread()}).learn(Records(past()))
    assert learned.used
    assert learned.weights["metric"] < 0.05


def test_it_needs_what_its_estimators_need_and_records():
    combination = learner(MEMBERS)
    assert combination.needs == {"facts", "records"}
    assert "nothing" in combination.cost
    assert combination.probes == []
    assert combination.higher_is_better


def test_too_few_targets_to_learn_from_are_refused():
    with pytest.raises(ValueError, match="`least`"):
        LearnedCombination(Combination(MEMBERS), least=1)


def test_a_source_that_no_estimator_can_judge_is_an_error(sources):
    with pytest.raises(PGEError, match="Expected at least one estimator"):
        rank_sources(target(sources, Records()), learner({"classes": Broken()}))


class Broken(FactEstimator):
    def estimate(self, target, sources):
        raise PGEError("nothing to see")


class Misread:
    """Takes a higher metric for the worse."""

    name, higher_is_better, needs, cost = "source_metric", False, frozenset({"facts"}), "nothing"

    def estimate(self, target, sources):
        return FactEstimator("source_metric").estimate(target, sources)


def test_the_shipped_selector_learns_what_facts_are_worth():
    with initialize_config_module("pge_lightning.conf", version_base="1.3"):
        estimator = build_estimator(compose("pge", overrides=["selector=learned"]).selector)
    assert isinstance(estimator, LearnedCombination)
    plain = set(estimator.combination.members)
    assert plain == {"standing", "gap", "label_free", "task2vec", "linear_probe", "log_me"}
    assert set(estimator.members) == plain | {"source_size", "source_classes"}
    assert estimator.needs >= {"facts", "records", "weights"}
