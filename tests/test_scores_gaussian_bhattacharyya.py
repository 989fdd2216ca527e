"""GBC: reference values, a slow reference, bounds, invariances, and what it refuses."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pge_lightning.functional.scores import gaussian_bhattacharyya
from score_samples import blobs, public_set, quietly, renamed

# By the published formula alone: spherical, diagonal.
REFERENCE = {
    "iris": (-0.33780431119840104, -0.23068557865491401),
    "wine": (-0.20327985008354676, -0.03515729759134759),
}
KINDS = ["spherical", "diagonal"]

sets = st.builds(
    blobs,
    seed=st.integers(0, 500),
    classes=st.integers(2, 5),
    width=st.integers(1, 8),
    spread=st.sampled_from([1e-5, 0.5, 1.0, 20.0]),
)
kinds = st.sampled_from(KINDS)


def slow(features, target, covariance):
    features, target = features.numpy(), target.numpy()
    parts = [features[target == name] for name in np.unique(target)]
    total = 0.0
    for one, other in itertools.permutations(parts, 2):
        variances = [np.maximum(part.var(0), 1e-4) for part in (one, other)]
        if covariance == "spherical":
            variances = [variance.mean() for variance in variances]
        middle = (variances[0] + variances[1]) / 2
        distance = np.sum((one.mean(0) - other.mean(0)) ** 2 / middle) / 8
        distance += np.sum(np.log(middle / np.sqrt(variances[0] * variances[1]))) / 2
        total -= np.exp(-distance)
    return float(total)


@pytest.mark.parametrize("name", ["iris", "wine"])
def test_public_sets_give_the_reference_values(name):
    values = [float(gaussian_bhattacharyya(*public_set(name), kind)) for kind in KINDS]
    assert values == pytest.approx(REFERENCE[name], rel=1e-9)


def test_spherical_is_the_default():
    assert torch.equal(gaussian_bhattacharyya(*blobs()), gaussian_bhattacharyya(*blobs(), "spherical"))


@settings(max_examples=40, deadline=None)
@given(sets, kinds)
def test_equals_the_slow_reference(samples, kind):
    expected = slow(*samples, kind)
    assert quietly(gaussian_bhattacharyya, *samples, kind) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@settings(max_examples=40, deadline=None)
@given(sets, kinds)
def test_lies_between_minus_the_number_of_ordered_pairs_and_zero(samples, kind):
    classes = int(samples[1].max()) + 1
    assert -classes * (classes - 1) <= quietly(gaussian_bhattacharyya, *samples, kind) <= 0


@pytest.mark.parametrize("kind", KINDS)
def test_classes_of_the_same_features_reach_the_lower_bound(kind):
    features = blobs()[0].repeat(3, 1)
    target = torch.arange(3).repeat_interleave(36)
    assert float(gaussian_bhattacharyya(features, target, kind)) == pytest.approx(-6.0)


@settings(max_examples=30, deadline=None)
@given(samples=sets, seed=st.integers(0, 500), kind=kinds)
def test_order_of_samples_names_of_classes_and_shifts_do_not_matter(samples, seed, kind):
    features, target = samples
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    value = quietly(gaussian_bhattacharyya, features[order] + 1, renamed(target[order], seed), kind)
    assert value == pytest.approx(quietly(gaussian_bhattacharyya, features, target, kind), rel=1e-6, abs=1e-300)


@pytest.mark.parametrize("kind", KINDS)
def test_scale_does_not_matter_above_the_floor(kind):
    features, target = blobs()
    value = float(gaussian_bhattacharyya(features, target, kind))
    assert float(gaussian_bhattacharyya(50 * features, target, kind)) == pytest.approx(value, rel=1e-9)


def test_a_class_with_a_single_sample_warns():
    features, target = blobs()
    target[0] = 9
    with pytest.warns(UserWarning, match="GBC says little here: 1 classes have a single sample"):
        gaussian_bhattacharyya(features, target)


def test_variances_below_the_floor_warn():
    features, target = blobs()
    with pytest.warns(UserWarning, match=r"all below its floor 0\.0001\. Scale the features"):
        gaussian_bhattacharyya(1e-3 * features, target)


def test_classes_too_far_apart_for_float64_warn():
    features, target = blobs()
    with pytest.warns(UserWarning, match="no two classes overlap"):
        assert not gaussian_bhattacharyya(features + 1e4 * target[:, None], target)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_scored_in_double(kind):
    features, target = blobs()
    value = gaussian_bhattacharyya(features.float(), target, kind)
    assert value.dtype == torch.float64
    assert value.shape == ()
    assert float(value) == pytest.approx(float(gaussian_bhattacharyya(features, target, kind)), rel=1e-5)


def test_an_unknown_covariance_is_refused():
    with pytest.raises(ValueError, match=r"Expected `covariance` to be one of .*, but got 'full'"):
        gaussian_bhattacharyya(*blobs(), "full")
