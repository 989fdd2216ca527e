"""NLEEP: a slow reference, bounds, invariances, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from pge_lightning.functional.scores import leep, nleep
from score_samples import blobs, public_set, quietly, renamed


def slow(features, target, components, energy=0.8):
    """Posteriors by Bayes' rule and the formula of the density, from the means and shares that scikit-learn fits."""
    order = np.lexsort(features.numpy().T)
    x, y = features.numpy()[order], target[torch.from_numpy(order)]
    reduced = PCA(energy, svd_solver="full").fit_transform(x)
    reduced /= np.sqrt(reduced.var(axis=0).mean())
    fitted = GaussianMixture(components, covariance_type="diag", reg_covar=1e-3, random_state=0).fit(reduced)
    density = np.zeros((len(x), components))
    for row, point in enumerate(reduced):
        for column in range(components):
            deviation = (point - fitted.means_[column]) ** 2 / fitted.covariances_[column]
            scale = np.prod(2 * math.pi * fitted.covariances_[column])
            density[row, column] = fitted.weights_[column] * math.exp(-0.5 * deviation.sum()) / math.sqrt(scale)
    return quietly(leep, torch.from_numpy(density / density.sum(axis=1, keepdims=True)), y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_equals_leep_of_the_posteriors_written_out():
    features, target = public_set("wine")
    assert float(nleep(features, target, components=6)) == pytest.approx(slow(features, target, 6), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 50), st.integers(2, 5), st.randoms(use_true_random=False))
def test_order_of_samples_and_names_of_classes_do_not_matter_within_the_bounds(seed, components, random):
    features, target = blobs(seed)
    order = list(range(len(target)))
    random.shuffle(order)
    value = quietly(nleep, features, target, components)
    assert quietly(nleep, features[order], renamed(target[order]), components) == value
    assert -math.log(3) - 1e-12 <= value <= 0.0


def test_a_common_scale_does_not_matter():
    features, target = blobs()
    assert float(nleep(1e3 * features, target)) == pytest.approx(float(nleep(features, target)), rel=1e-6)


def test_separate_classes_score_higher_than_the_same_features_with_shuffled_classes():
    features, target = blobs(spread=0.3)
    assert quietly(nleep, features, target) > quietly(nleep, features, target.roll(1)) + 0.3


def test_with_few_samples_there_are_fewer_clusters_than_five_per_class():
    features, target = blobs(per_class=12)
    assert torch.equal(nleep(features, target), nleep(features, target, components=36 // 8))
    assert nleep(features, target) < nleep(features, target, components=15)


def test_with_many_samples_there_are_five_clusters_per_class():
    features, target = blobs(per_class=60)
    assert torch.equal(nleep(features, target), nleep(features, target, components=15))


def test_the_seed_draws_the_start():
    features, target = blobs(classes=5)
    assert len({float(nleep(features, target, components=7, seed=seed)) for seed in range(4)}) > 1


def test_clusters_that_name_the_samples_warn():
    features, target = blobs(spread=1e-3)
    with pytest.warns(UserWarning, match="NLEEP says little here: it is at its bound 0"):
        nleep(features, target, components=3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"components": 1}, "Expected `components` from 2 to the 36 samples"),
        ({"components": 37}, "Expected `components` from 2 to the 36 samples"),
        ({"energy": 1.0}, "Expected `energy` to be above 0 and below 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        nleep(*blobs(), **options)


def test_constant_features_are_refused():
    features, target = blobs()
    with pytest.raises(ValueError, match="every feature is constant"):
        nleep(torch.ones_like(features), target)
