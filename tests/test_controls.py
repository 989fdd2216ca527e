"""The gap on real data: it sees the task, and neither the numbers of the classes nor the accident of a sample."""

import math
import runpy
from pathlib import Path
from statistics import fmean

import pytest

from pge_lightning.gap import paired_difference

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "controls.py"


@pytest.fixture(scope="module")
def measured():
    return runpy.run_path(str(SCRIPT))["controls"]()


def test_the_other_half_is_nearer_than_other_data_and_these_are_nearer_than_noise(measured):
    gaps, others = measured
    assert gaps["second half"].value < fmean(gaps[name].value for name in others) < gaps["noise"].value
    assert all(gaps["second half"].high < gaps[name].low for name in others)


def test_shuffled_labels_stand_out_of_the_noise_floor_by_three_standard_errors(measured):
    gaps, _ = measured
    shuffled, floor = gaps["first half, labels shuffled"], gaps["second half"]
    error = math.hypot(shuffled.standard_error, floor.standard_error)
    assert shuffled.value - floor.value > 3 * error


def test_class_numbers_do_not_matter(measured):
    gaps, _ = measured
    mean, low, high = paired_difference(gaps["second half, classes renumbered"], gaps["second half"])
    assert low < 0 < high
    assert abs(mean) < gaps["second half"].standard_error * 2
