"""Intervals by drawing targets and seeds again, and paired tests."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pge_lightning.app.bootstrap import bootstrap, compare_pairwise
from pge_lightning.app.quality import assess

SOURCES = [f"s{i}" for i in range(8)]


def world(targets=6, seeds=4, noise=0.0, seed=0):
    """What fine-tuning gave, an estimator that knows it, and one that knows nothing."""
    random = np.random.default_rng(seed)
    values, scores = {}, {}
    for number in range(targets):
        truth = random.normal(size=len(SOURCES))
        values[f"t{number}"] = pd.DataFrame(
            truth[:, None] + noise * random.normal(size=(len(SOURCES), seeds)), index=SOURCES
        )
        scores[f"t{number}"] = pd.DataFrame({"oracle": truth, "guess": random.normal(size=len(SOURCES))}, index=SOURCES)
    return values, scores


def intervals(*world, **options):
    """Estimator to the ends for both measures."""
    table = bootstrap(*world, **options).set_index("estimator")
    return {
        name: {measure: tuple(row[[f"{measure}_low", f"{measure}_high"]]) for measure in ("weighted_tau", "regret")}
        for name, row in table.iterrows()
    }


class TestBootstrap:
    def test_who_is_always_right_has_no_interval(self):
        found = intervals(*world(), draws=50)
        assert found["oracle"]["regret"] == (0, 0)
        assert found["oracle"]["weighted_tau"] == pytest.approx((1, 1))
        assert found["guess"]["weighted_tau"][0] < found["guess"]["weighted_tau"][1] < 1
        assert 0 < found["guess"]["regret"][0] < found["guess"]["regret"][1]

    def test_holds_the_mean_over_targets(self):
        values, scores = world(noise=0.5)
        for estimator, ends in intervals(values, scores).items():
            told = [assess(scores[name][estimator], values[name].mean(axis=1)) for name in values]
            for name, (low, high) in ends.items():
                assert low <= np.mean([getattr(quality, name) for quality in told]) <= high

    def test_noise_of_seeds_widens_it(self):
        quiet, loud = (intervals(*world(noise=noise))["oracle"]["weighted_tau"] for noise in (0.0, 1.0))
        assert loud[1] - loud[0] > quiet[1] - quiet[0]

    def test_more_targets_narrow_it(self):
        few, many = (intervals(*world(targets=number), draws=100)["guess"]["weighted_tau"] for number in (4, 40))
        assert many[1] - many[0] < 0.75 * (few[1] - few[0])

    def test_without_two_sources_on_any_target_there_is_no_interval(self):
        values, scores = world(targets=2)
        table = bootstrap({name: table.iloc[:1] for name, table in values.items()}, scores)
        assert table.empty
        assert table.columns[0] == "estimator"
        assert len(table.columns) == 5

    def test_is_the_same_again(self):
        one, other = (bootstrap(*world(noise=1.0), draws=20) for _ in range(2))
        pd.testing.assert_frame_equal(one, other)

    def test_who_said_nothing_of_a_target_is_judged_by_the_others(self):
        values, scores = world()
        scores["t0"]["oracle"] = np.nan
        scores["t1"].loc["s0", "guess"] = np.nan  # stands last
        found = intervals(values, scores, draws=50)
        assert found["oracle"]["weighted_tau"] == pytest.approx((1, 1))
        assert np.isfinite(found["guess"]["weighted_tau"]).all()


class TestPairs:
    def results(self, differences):
        rows = []
        for number, difference in enumerate(differences):
            for name, value in (("a", 0.5 + difference), ("b", 0.5)):
                rows.append({"target": f"t{number}", "estimator": name, "weighted_tau": value, "regret": 1 - value})
        return pd.DataFrame(rows)

    def test_equals_the_sign_test_by_hand(self):
        # All 2^4 sign patterns are as likely; only two are as extreme as the one that was seen.
        (row,) = compare_pairwise(self.results([0.1, 0.2, 0.3, 0.4])).to_dict("records")
        assert (row["estimator"], row["other"], row["targets"]) == ("a", "b", 4)
        assert row["weighted_tau"] == pytest.approx(0.25)
        assert row["regret"] == pytest.approx(-0.25)
        assert row["weighted_tau_p"] == row["regret_p"] == pytest.approx(2 / 16)

    def test_is_near_the_t_test_for_many_targets(self):
        differences = np.random.default_rng(0).normal(0.2, 1.0, size=60)
        (row,) = compare_pairwise(self.results(differences)).to_dict("records")
        assert row["weighted_tau_p"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.02)

    def test_equal_estimators_do_not_differ(self):
        (row,) = compare_pairwise(self.results([0.0, 0.0, 0.0])).to_dict("records")
        assert (row["weighted_tau"], row["weighted_tau_p"]) == (0, 1)

    def test_a_single_target_tells_nothing(self):
        (row,) = compare_pairwise(self.results([0.3])).to_dict("records")
        assert row["targets"] == 1
        assert np.isnan(row["weighted_tau_p"])
