"""Estimates: their errors, ties and failures; and what every estimator has."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pge_lightning.errors import PGEError
from pge_lightning.estimators import (
    Combination,
    Estimate,
    Estimator,
    FactEstimator,
    FeatureScore,
    GapEstimator,
    Pipeline,
    RandomOrder,
)
from pge_lightning.estimators.estimator import NEEDS, dependence, each, of_replicates, probes_of, tied
from pge_lightning.probe import PROBES, Probe

SHIPPED = [
    GapEstimator(),
    FeatureScore(),
    FactEstimator(),
    RandomOrder(),
    Combination({"gap": GapEstimator(), "score": FeatureScore()}),
    Pipeline(GapEstimator(), FeatureScore()),
]


@pytest.mark.parametrize("estimator", SHIPPED, ids=lambda estimator: type(estimator).__name__)
def test_every_estimator_says_what_it_is(estimator):
    assert isinstance(estimator, Estimator)
    assert estimator.name
    assert isinstance(estimator.higher_is_better, bool)
    assert estimator.needs <= set(NEEDS)
    assert len(estimator.cost) > 5


def test_what_lacks_a_member_is_no_estimator():
    assert not isinstance(PROBES["fast"], Estimator)


def test_equal_estimators_are_equal_and_others_are_not():
    assert FeatureScore("knn", {"k": 3}) == FeatureScore("knn", {"k": 3}) != FeatureScore("knn", {"k": 5})
    assert GapEstimator("fast") == GapEstimator(PROBES["fast"]) != GapEstimator("fast", weigh=False)


def test_draws_give_mean_error_and_interval():
    estimate = of_replicates(iter([1.0, 2.0, 3.0, 6.0]))
    error = math.sqrt(14 / 3 / 4)
    assert estimate.value == pytest.approx(3)
    assert estimate.standard_error == pytest.approx(error)
    assert (estimate.low, estimate.high) == pytest.approx((3 - 3.182446305 * error, 3 + 3.182446305 * error))
    assert estimate.replicates == (1.0, 2.0, 3.0, 6.0)


def test_a_single_draw_has_no_error():
    estimate = of_replicates([0.5])
    assert (estimate.value, estimate.replicates) == (0.5, (0.5,))
    assert all(map(math.isnan, (estimate.standard_error, estimate.low, estimate.high)))
    assert all(map(math.isnan, (Estimate(1.0).standard_error, Estimate(1.0).low, Estimate(1.0).high)))


class TestTies:
    def test_draws_are_compared_pair_by_pair(self):
        # Either mean is uncertain by far more than they differ, but every single draw says the same.
        near, far = of_replicates([0.1, 0.5, 0.9]), of_replicates([0.2, 0.61, 0.99])
        assert far.value - near.value < near.standard_error
        assert not tied(near, far)
        assert not tied(far, near)
        assert tied(near, of_replicates([0.9, 0.5, 0.12]))

    def test_equals_the_paired_test_of_scipy(self):
        near, far = [0.3, 0.5, 0.2, 0.4], [0.4, 0.6, 0.55, 0.35]
        p = stats.ttest_rel(near, far).pvalue
        a, b = of_replicates(near), of_replicates(far)
        assert tied(a, b, confidence=1 - p + 1e-6)
        assert not tied(a, b, confidence=1 - p - 1e-6)

    def test_draws_that_depend_on_each_other_say_less(self):
        near, far = of_replicates([0.3, 0.5, 0.2, 0.4]), of_replicates([0.5, 0.6, 0.38, 0.55])
        assert not tied(near, far)
        said = replace(far, standard_error=3 * far.standard_error)
        assert (dependence(far), dependence(said)) == (1, pytest.approx(3))
        assert tied(near, said)
        assert tied(said, near)
        # The interval of the difference is three times as wide.
        differences = np.subtract(near.replicates, far.replicates)
        t = abs(differences.mean()) / stats.sem(differences) / 3
        p = 2 * stats.t.sf(t, 3)
        assert tied(near, said, confidence=1 - p + 1e-6)
        assert not tied(near, said, confidence=1 - p - 1e-6)

    def test_without_draws_nothing_is_known_of_their_dependence(self):
        assert dependence(Estimate(1.0)) == dependence(Estimate(1.0, 0.5)) == dependence(of_replicates([1.0])) == 1
        assert dependence(of_replicates([1.0, 1.0])) == 1

    def test_without_common_draws_the_errors_decide(self):
        # The difference of 1 stands against an error of sqrt(0.09 + 0.16) = 0.5, which is two of them.
        a, b = Estimate(2.0, 0.3), Estimate(3.0, 0.4)
        assert not tied(a, b, confidence=0.954)
        assert tied(a, b, confidence=0.955)
        uneven = Estimate(3.0, 0.4, replicates=(2.5, 3.0, 3.5))
        assert not tied(Estimate(2.0, 0.3, replicates=(1.5, 2.5)), uneven, confidence=0.954)

    def test_without_errors_only_equal_values_are_tied(self):
        assert tied(Estimate(1.0), Estimate(1.0))
        assert not tied(Estimate(1.0), Estimate(1.0 + 1e-9))
        assert not tied(Estimate(1.0, 5.0), Estimate(1.1))
        assert not tied(of_replicates([1.0]), of_replicates([1.1]))


class TestEach:
    def test_what_goes_wrong_with_one_source_is_kept_in_its_place(self):
        def judge(name):
            if name == "b":
                raise KeyError(name)
            return Estimate(float(len(name)))

        found = each(["c", "b", "a"], judge)
        assert list(found) == ["c", "b", "a"]
        assert isinstance(found["b"], KeyError)
        assert (found["c"], found["a"]) == (Estimate(1.0), Estimate(1.0))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_an_estimate_that_is_not_finite_is_an_error(self, value):
        found = each(["a"], lambda name: Estimate(value))
        assert isinstance(found["a"], ValueError)
        assert f"finite value, but got {value}" in str(found["a"])

    def test_an_interruption_is_no_error_of_a_source(self):
        def judge(name):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            each(["a"], judge)


class TestProbes:
    def test_what_compares_no_signatures_has_none(self):
        assert probes_of(FeatureScore()) == probes_of(FactEstimator()) == []

    def test_each_probe_comes_once_and_in_order(self):
        other = Probe(name="other", seed=3)
        first, second = GapEstimator("fast"), GapEstimator(other, name="second")
        estimators = {"a": first, "b": second, "c": GapEstimator("fast", weigh=False, name="third")}
        assert probes_of(Combination(estimators)) == [PROBES["fast"], other]
        assert probes_of(Pipeline(GapEstimator(other), Combination(estimators))) == [other, PROBES["fast"]]

    def test_an_unknown_probe_is_refused(self):
        with pytest.raises(ValueError, match="`probe`"):
            GapEstimator("slow")


def test_an_error_of_the_library_is_an_exception_like_any_other():
    found = each(["a"], lambda name: (_ for _ in ()).throw(PGEError("it says why")))
    assert str(found["a"]) == "it says why"
