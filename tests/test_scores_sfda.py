"""SFDA: a slow reference, bounds, invariances, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from pge_lightning.functional.scores import sfda
from score_samples import blobs, public_set, quietly, renamed


def posteriors(features, target, shrinkage):
    """Linear discriminant analysis sample by sample: Gaussians of one covariance, by their densities."""
    classes = np.unique(target)
    means = [features[target == name].mean(axis=0) for name in classes]
    shares = [np.mean(target == name) for name in classes]
    covariance = sum(
        share * np.atleast_2d(np.cov(features[target == name].T, bias=True))
        for share, name in zip(shares, classes, strict=True)
    )
    width = features.shape[1]
    covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / width * np.eye(width)
    rows = []
    for point in features:
        distances = [(point - mean) @ np.linalg.solve(covariance, point - mean) for mean in means]
        logs = [math.log(share) - 0.5 * distance for share, distance in zip(shares, distances, strict=True)]
        rows.append([math.exp(value - max(logs)) for value in logs])
    return np.array([np.array(row) / sum(row) for row in rows])


def slow(features, target):
    """As the paper tells it, with one class after the other."""
    x, y = features.numpy(), target.numpy()
    classes = np.unique(y)
    within = sum(np.mean(y == name) * np.cov(x[y == name].T, bias=True) for name in classes)
    shrinkage = max(math.exp(-5 * np.linalg.eigvalsh(within)[-1]), 1e-10)
    first, mixed = posteriors(x, y, shrinkage), x.copy()
    means = {name: x[y == name].mean(axis=0) for name in classes}
    for row, name in enumerate(y):
        column = list(classes).index(name)
        sure = math.exp(first[row, column]) / sum(math.exp(p) for p in first[row])
        others = np.mean([means[other] for other in classes if other != name], axis=0)
        mixed[row] = sure * x[row] + (1 - sure) * others
    second = posteriors(mixed, y, shrinkage)
    return float(np.mean([second[row, list(classes).index(name)] for row, name in enumerate(y)]))


@pytest.mark.parametrize("name", ["iris", "wine"])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_equals_the_slow_reference_at_any_shrinkage(name, scale):
    features, target = public_set(name)
    assert float(sfda(scale * features, target)) == pytest.approx(slow(scale * features, target), rel=1e-8)


def test_the_discriminant_analysis_is_that_of_scikit_learn():
    features, target = public_set("wine")
    peer = LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.3)
    expected = peer.fit(features.numpy(), target.numpy()).predict_proba(features.numpy())
    assert posteriors(features.numpy(), target.numpy(), 0.3) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 3.0), st.randoms(use_true_random=False))
def test_order_of_samples_names_of_classes_and_origin_do_not_matter_within_the_bounds(seed, spread, random):
    features, target = blobs(seed, spread=spread)
    order = list(range(len(target)))
    random.shuffle(order)
    value = quietly(sfda, features, target)
    again = quietly(sfda, features[order] + 100.0, renamed(target[order]))
    assert again == pytest.approx(value, rel=1e-6)
    assert 0.0 < value <= 1.0


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_rotated_features_score_the_same(seed):
    features, target = blobs(seed)
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(seed)).double()).Q
    assert quietly(sfda, features @ rotation, target) == pytest.approx(quietly(sfda, features, target), rel=1e-6)


def test_separate_classes_score_higher_than_mixed_ones():
    assert quietly(sfda, *blobs(spread=0.3)) > quietly(sfda, *blobs(spread=3.0)) + 0.1


def test_a_feature_without_spread_changes_little():
    features, target = blobs()
    padded = torch.cat([features, torch.full((len(features), 1), 7.0, dtype=torch.float64)], dim=1)
    assert float(sfda(padded, target)) == pytest.approx(float(sfda(features, target)), abs=0.02)


def test_more_features_than_samples_and_a_value_at_its_bound_warn():
    with (
        pytest.warns(UserWarning, match="SFDA says little here: 50 features of 36 samples fit chance"),
        pytest.warns(UserWarning, match="it is at its bound 1"),
    ):
        sfda(*blobs(width=50))


def test_a_class_of_one_sample_warns():
    features, target = blobs()
    with pytest.warns(UserWarning, match="1 classes have a single sample"):
        sfda(features, torch.where(torch.arange(36) == 0, 99, target))


def test_features_that_are_constant_within_classes_are_refused():
    target = torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="Expected features that vary within classes"):
        sfda(target[:, None].double(), target)
    with pytest.raises(ValueError, match="every feature is constant"):
        sfda(torch.ones(4, 2), target)
