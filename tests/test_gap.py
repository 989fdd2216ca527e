"""Comparing signatures: value, error, interval, ties, and refusals."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from pge_lightning.errors import IncomparableError
from pge_lightning.functional import kernelwise_gap, layerwise_gap, principal_gradient_gap
from pge_lightning.gap import KINDS, Gap, compare, paired_difference, tied
from pge_lightning.probe import PROBES, Probe
from pge_lightning.signature import Signature

SHAPES = {"conv.weight": (4, 3, 3), "conv.bias": (4,), "linear.weight": (5, 7)}


def signature(seed, restarts=6, probe=None, budget=200, shared=0.5):
    """Random gradients with a part that all data sets share, as real ones have."""
    common, own = (torch.Generator().manual_seed(s) for s in (999, seed))
    units = {
        name: shared * torch.randn(restarts, *shape, generator=common) + torch.randn(restarts, *shape, generator=own)
        for name, shape in SHAPES.items()
    }
    probe = probe or Probe(restarts=restarts)
    starts = {name: tuple(f"{name}{k}" for k in range(restarts)) for name in units} if probe.paired else {}
    return Signature(units, starts, probe, budget, restarts, data=f"data{seed}", samples=1000)


def gap_of(values, kind="layerwise", budget=200):
    mean, error = float(np.mean(values)), float(stats.sem(values))
    return Gap(mean, error, mean - error, mean + error, tuple(float(value) for value in values), kind, budget)


@pytest.mark.parametrize("kind", KINDS)
def test_value_is_the_plain_formula(kind):
    source, target = signature(0), signature(1)
    gap = compare(source, target, kind)
    assert gap.value == pytest.approx(float(principal_gradient_gap(source.units, target.units, kind)), rel=0, abs=0)
    assert (gap.kind, gap.budget, len(gap.per_restart)) == (kind, 200, 6)
    assert gap.low < gap.value < gap.high


@pytest.mark.parametrize(("kind", "formula"), [("kernelwise", kernelwise_gap), ("layerwise", layerwise_gap)])
def test_interval_of_a_mean_is_student_t_over_restarts(kind, formula):
    source, target = signature(0), signature(1)
    values = formula(source.units, target.units).numpy()
    gap = compare(source, target, kind, confidence=0.9)
    low, high = stats.t.interval(0.9, 5, loc=values.mean(), scale=stats.sem(values))
    assert gap.per_restart == tuple(values)
    assert gap.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(6), rel=1e-12)
    assert (gap.low, gap.high) == pytest.approx((low, high), rel=1e-12)


@pytest.mark.parametrize("kind", ["unit", "published"])
def test_jackknife_agrees_with_a_slow_one(kind):
    source, target = signature(0), signature(1)

    def slow(restarts):
        s, t = (
            np.mean(
                [np.concatenate([side.units[u][k].double().numpy().ravel() for u in SHAPES]) for k in restarts], axis=0
            )
            for side in (source, target)
        )
        sizes = np.linalg.norm(s), np.linalg.norm(t)
        if kind == "unit":
            return math.sqrt(2 - 2 * (s @ t) / sizes[0] / sizes[1])
        return np.linalg.norm(s - t) / sizes[0] / sizes[1]

    left_out = np.array([slow([j for j in range(6) if j != k]) for k in range(6)])
    error = math.sqrt(5 / 6 * ((left_out - left_out.mean()) ** 2).sum())
    gap = compare(source, target, kind)
    assert gap.value == pytest.approx(slow(range(6)), rel=1e-9)
    assert gap.standard_error == pytest.approx(error, rel=1e-9)
    assert gap.per_restart == pytest.approx(6 * slow(range(6)) - 5 * left_out, rel=1e-9)
    margin = stats.t.ppf(0.975, 5) * error
    assert (gap.low, gap.high) == pytest.approx((gap.value - margin, gap.value + margin), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gap_to_itself_is_zero_without_doubt(kind):
    gap = compare(signature(0), signature(0), kind)
    assert (gap.value, gap.standard_error, gap.low, gap.high) == (0.0, 0.0, 0.0, 0.0)


def test_interval_stays_within_the_range_of_the_kind():
    units = {"w": torch.tensor([[1.0, 0.0], [1.0, 0.0]])}
    mixed = {"w": torch.tensor([[2.0, 0.1], [-1.0, 0.1]])}
    source, target = (
        Signature(u, {"w": ("a", "b")}, Probe(restarts=2), 200, 2, data="d", samples=500) for u in (units, mixed)
    )
    layerwise, published = compare(source, target), compare(source, target, "published")
    assert (layerwise.low, layerwise.high) == (0.0, 2.0)
    assert published.low <= 0.0 < 2.0 < published.high


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("probe", [Probe(restarts=1), PROBES["published"]])
def test_one_restart_has_no_error_bar(kind, probe):
    gap = compare(signature(0, 1, probe), signature(1, 1, probe), kind)
    assert gap.per_restart == (gap.value,)
    assert all(math.isnan(number) for number in (gap.standard_error, gap.low, gap.high))
    assert tied(gap, compare(signature(2, 1, probe), signature(1, 1, probe), kind))


def test_unpaired_restarts_have_no_error_bar():
    probe = Probe(restarts=4, paired=False)
    gap = compare(signature(0, 4, probe), signature(1, 4, probe))
    assert len(gap.per_restart) == 1
    assert math.isnan(gap.standard_error)


def test_interval_covers_the_truth_as_often_as_it_says():
    """Planted angles: the gap of restart k is 1 - cos of an angle drawn i.i.d., whose mean is known."""
    generator = np.random.default_rng(0)
    probe, trials, restarts = Probe(restarts=5), 1000, 5
    source = Signature(
        {"w": torch.tensor([[1.0, 0.0]]).repeat(restarts, 1)}, {"w": ("x",) * 5}, probe, 200, 5, "s", 500
    )
    covered = 0
    for angles in np.arccos(1 - generator.normal(0.6, 0.1, (trials, restarts)).clip(0, 2)):
        units = {"w": torch.tensor(np.stack([np.cos(angles), np.sin(angles)], axis=1))}
        gap = compare(source, dataclasses.replace(source, units=units), confidence=0.9)
        covered += gap.low <= 0.6 <= gap.high
    assert 0.87 < covered / trials < 0.93


@pytest.mark.parametrize("kind", ["unit", "published"])
def test_jackknife_error_is_the_spread_of_the_value_over_fresh_restarts(kind):
    gaps = []
    for trial in range(150):
        generator = torch.Generator().manual_seed(trial)
        sides = [
            {"w": torch.tensor(mean) + 0.5 * torch.randn(12, 3, generator=generator)}
            for mean in ([2.0, 1.0, 0.0], [1.0, 2.0, 1.0])
        ]
        source, target = (Signature(u, {}, Probe(restarts=12), 200, 12, "d", 500) for u in sides)
        gaps.append(compare(source, target, kind))
    spread = np.std([gap.value for gap in gaps], ddof=1)
    assert np.mean([gap.standard_error for gap in gaps]) == pytest.approx(spread, rel=0.25)


def test_paired_difference_sees_what_overlapping_intervals_hide():
    target = np.random.default_rng(1).normal(0.8, 0.2, 8)
    noise = np.random.default_rng(2).normal(0.0, 0.005, (2, 8))
    near, far = gap_of(target + noise[0]), gap_of(target + 0.03 + noise[1])
    assert near.high > far.low
    mean, low, high = paired_difference(near, far)
    result = stats.ttest_rel(near.per_restart, far.per_restart)
    expected = result.confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((near.value - far.value, expected.low, expected.high), rel=1e-9)
    assert high < 0
    assert not tied(near, far)
    assert not tied(far, near)


def test_ties():
    a, b = gap_of([0.5, 0.6, 0.7]), gap_of([0.6, 0.5, 0.71])
    assert tied(a, b)
    assert tied(a, a)
    assert not tied(a, gap_of([0.6, 0.7, 0.8]))
    nearly = gap_of([0.53, 0.62, 0.71])
    assert not tied(a, nearly, confidence=0.8)
    assert tied(a, nearly, confidence=0.99)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (gap_of([0.5, 0.6, 0.7], kind="unit"), "one kind, but got layerwise and unit"),
        (gap_of([0.5, 0.6, 0.7], budget=1000), "one budget, but got 200 and 1000"),
        (gap_of([0.5, 0.6]), "one number of restarts, but got 3 and 2"),
    ],
)
def test_gaps_made_in_other_ways_have_no_difference(other, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(gap_of([0.5, 0.6, 0.7]), other)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_out_of_range(confidence):
    with pytest.raises(ValueError, match="`confidence` between 0 and 1"):
        compare(signature(0), signature(1), confidence=confidence)


def test_incomparable_signatures_are_refused_naming_the_unit():
    source, target = signature(0), signature(1)
    moved = dict(target.starts, **{"conv.bias": ("other",) * 6})
    with pytest.raises(IncomparableError, match=r"'conv\.bias' started from other values"):
        compare(source, dataclasses.replace(target, starts=moved))
    wider = dict(target.units, **{"linear.weight": torch.ones(6, 5, 8)})
    with pytest.raises(IncomparableError, match=r"'linear\.weight'.*\[5, 7\] and \[5, 8\]"):
        compare(source, dataclasses.replace(target, units=wider))
    fewer = {name: unit for name, unit in target.units.items() if name != "conv.bias"}
    with pytest.raises(IncomparableError, match=r"conv\.bias"):
        compare(source, dataclasses.replace(target, units=fewer))
    with pytest.raises(IncomparableError, match="budgets"):
        compare(source, dataclasses.replace(target, budget=1000))


def test_not_finite_and_unknown_kind_are_refused():
    broken = signature(1)
    broken.units["conv.bias"][2, 1] = math.nan
    with pytest.raises(ValueError, match=r"source holds nan or inf in unit 'conv\.bias'"):
        compare(broken, signature(0))
    with pytest.raises(ValueError, match="'kernelwise', 'layerwise', 'unit', 'published'"):
        compare(signature(0), signature(1), "euclid")


def test_a_gap_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        gap_of([0.5, 0.6]).value = 0.0
