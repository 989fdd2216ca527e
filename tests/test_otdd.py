"""Optimal-transport and Gaussian distances between samples, against cases by hand and POT's own."""

import itertools
import math
import sys

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pge_lightning.functional.distances import gaussian_wasserstein, otdd
from pge_lightning.metrics.otdd import OptimalTransportDatasetDistance


def drawn(seed, samples=30, features=4, classes=3):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    mixed = inputs @ torch.randn(features, features, generator=generator, dtype=torch.float64)
    return mixed + torch.randn(features, generator=generator, dtype=torch.float64), torch.arange(samples) % classes


def moments(samples):
    values = samples.numpy()
    return values.mean(0), np.cov(values.T, bias=True)


@pytest.mark.parametrize(("n", "m"), [(30, 50), (3, 50), (3, 2), (50, 1)])
def test_the_gaussian_distance_is_that_of_pot_for_any_number_of_samples(n, m):
    source, target = drawn(0, n)[0], drawn(1, m)[0]
    (mean, covariance), (other_mean, other_covariance) = moments(source), moments(target)
    # POT takes roots of covariances, which few samples leave singular.
    covariance, other_covariance = (each + 1e-6 * np.eye(4) for each in (covariance, other_covariance))
    expected = ot.gaussian.bures_wasserstein_distance(mean, other_mean, covariance, other_covariance)
    assert gaussian_wasserstein(source, target).item() == pytest.approx(float(expected), rel=1e-3)


def test_the_gaussian_distance_of_shifted_and_scaled_samples_by_hand():
    samples = drawn(0)[0]
    assert gaussian_wasserstein(samples, samples + 2).item() == pytest.approx(4, rel=1e-6)
    centred = samples - samples.mean(0)
    spread = math.sqrt(centred.square().sum(1).mean())
    assert gaussian_wasserstein(centred, 3 * centred).item() == pytest.approx(2 * spread, rel=1e-6)


def brute_force(source_x, source_y, target_x, target_y):
    """By all matchings, and distances of classes by POT."""
    labels = {}
    for a, b in itertools.product(source_y.unique().tolist(), target_y.unique().tolist()):
        ours, its = moments(source_x[source_y == a]), moments(target_x[target_y == b])
        labels[a, b] = float(ot.gaussian.bures_wasserstein_distance(ours[0], its[0], ours[1], its[1])) ** 2
    n = len(source_x)
    cost = [
        [
            float((source_x[i] - target_x[j]).square().sum()) + labels[int(source_y[i]), int(target_y[j])]
            for j in range(n)
        ]
        for i in range(n)
    ]
    best = min(sum(cost[i][j] for i, j in enumerate(order)) for order in itertools.permutations(range(n)))
    return math.sqrt(best / n)


def test_the_distance_is_that_of_the_best_matching():
    (source_x, source_y), (target_x, target_y) = drawn(0, 6, 2, classes=2), drawn(1, 6, 2, classes=3)
    found = otdd(source_x, source_y, target_x, target_y).item()
    assert found == pytest.approx(brute_force(source_x, source_y, target_x, target_y), rel=1e-6)


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_identity_symmetry_order_of_samples_and_names_of_classes(seed):
    (source_x, source_y), (target_x, target_y) = drawn(seed), drawn(seed + 20_000, 20)
    distance = otdd(source_x, source_y, target_x, target_y)
    assert distance > 0
    torch.testing.assert_close(otdd(target_x, target_y, source_x, source_y), distance)
    assert otdd(source_x, source_y, source_x, source_y).item() == pytest.approx(0, abs=1e-5)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    names = torch.tensor([17, 4, 8])
    torch.testing.assert_close(otdd(source_x[order], names[source_y[order]], target_x, target_y), distance)


def test_labels_that_are_shuffled_move_the_distance():
    inputs, labels = drawn(0)
    inputs = inputs + 10.0 * labels[:, None]
    shuffled = labels[torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    assert otdd(inputs, labels, inputs, shuffled) > 1
    assert gaussian_wasserstein(inputs, inputs).item() == pytest.approx(0, abs=1e-5)


def test_entropy_gives_a_little_more_than_the_exact_distance():
    (source_x, source_y), (target_x, target_y) = drawn(0), drawn(1)
    exact = otdd(source_x, source_y, target_x, target_y).item()
    near, far = (otdd(source_x, source_y, target_x, target_y, regularisation=r).item() for r in (0.005, 1.0))
    assert exact <= near * (1 + 1e-6)
    assert near == pytest.approx(exact, rel=0.05)
    assert far > near


def test_the_inputs_are_left_alone_and_may_be_float32():
    inputs, labels = drawn(0)
    kept = inputs.clone()
    assert otdd(inputs.float(), labels.int(), inputs.float() + 1, labels).item() == pytest.approx(
        math.sqrt(8), rel=1e-5
    )
    assert torch.equal(inputs, kept)


X, Y = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 1, 1, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, Y, X[:, :1], Y), r"Reduce both to vectors of one length"),
        ((X[:0], Y[:0], X, Y), r"at least one each, but got \[0, 2\]"),
        ((X[0], Y, X, Y), r"Expected samples `\[n, d\]`"),
        ((X, Y[:3], X, Y), r"one class number for each of 5 samples, but got shape \[3\]"),
        ((X * torch.inf, Y, X, Y), "Expected finite samples"),
        ((X, Y, X, Y, -1.0), "`regularisation` of at least 0, but got -1.0"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        otdd(*arguments)


def test_without_pot_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(ImportError, match=r"pip install 'pge-lightning\[distances\]'"):
        otdd(X, Y, X, Y)


def test_the_metric_sees_all_batches_of_both_sides():
    (source_x, source_y), (target_x, target_y) = drawn(0), drawn(1, 20)
    metric = OptimalTransportDatasetDistance()
    for part in (slice(0, 7), slice(7, None)):
        metric.update(source_x[part], source_y[part], source=True)
        metric.update(target_x[part], target_y[part], source=False)
    torch.testing.assert_close(metric.compute(), otdd(source_x, source_y, target_x, target_y))
    assert metric.plot()[1].get_title() is not None
    metric.reset()
    metric.update(source_x, source_y, source=True)
    with pytest.raises(ValueError, match="one has none"):
        metric.compute()
