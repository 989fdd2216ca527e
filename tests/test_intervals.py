"""Intervals: the error of a mean of a few draws, and how far it may be off."""

import math

import numpy as np
import pytest
from scipy import stats

from pge_lightning.intervals import error_and_margin, quantile


def test_values_by_hand():
    # The sample variance of 1, 2, 3, 6 is (4 + 1 + 0 + 9) / 3; the mean's is a fourth of it.
    error, margin = error_and_margin([1.0, 2.0, 3.0, 6.0])
    assert error == pytest.approx(math.sqrt(14 / 3 / 4))
    assert margin == pytest.approx(3.182446305 * error)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_equals_the_interval_of_scipy(confidence):
    values = np.random.default_rng(0).normal(size=7).tolist()
    _, margin = error_and_margin(values, confidence)
    interval = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert 2 * margin == pytest.approx(interval.high - interval.low)


def test_so_many_intervals_cover_the_mean_as_they_say():
    draws = np.random.default_rng(0).normal(loc=3.0, size=(1000, 5))
    covered = [abs(row.mean() - 3.0) <= error_and_margin(row.tolist(), 0.9)[1] for row in draws]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("values", [[], [2.0]])
def test_fewer_than_two_draws_say_nothing(values):
    assert all(math.isnan(number) for number in error_and_margin(values))


def test_equal_draws_leave_no_doubt():
    assert error_and_margin([2.0, 2.0, 2.0]) == (0.0, 0.0)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5, 95])
def test_a_confidence_out_of_range_is_refused(confidence):
    with pytest.raises(ValueError, match=f"`confidence` between 0 and 1, but got {confidence}"):
        error_and_margin([1.0, 2.0], confidence)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_quantiles_are_those_of_scipy_and_infinitely_many_draws_are_normal(confidence):
    for freedom in (1, 15):
        assert quantile(confidence, freedom) == stats.t.interval(confidence, freedom)[1]
    assert quantile(confidence) == pytest.approx(stats.norm.interval(confidence)[1], rel=1e-12)
