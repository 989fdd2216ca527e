"""TransRate: reference values, a slow reference, bounds, invariances, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pge_lightning.functional.scores import trans_rate
from score_samples import blobs, public_set, quietly, renamed

REFERENCE = {"iris": 0.5894054063746488, "wine": 2.6671221961304425}  # two public code bases agree

sets = st.builds(blobs, seed=st.integers(0, 500), classes=st.integers(2, 5), width=st.integers(1, 40))


def rate(samples, distortion):
    n, d = samples.shape
    return np.linalg.slogdet(np.eye(d) + samples.T @ samples / (n * distortion))[1] / 2


def slow(features, target, distortion=1e-4):
    features, target = features.numpy(), target.numpy()
    centred = features - features.mean(0)
    parts = [rate(centred[target == name], distortion) for name in np.unique(target)]
    return rate(centred, distortion) - sum(parts) / len(parts)


@pytest.mark.parametrize("name", ["iris", "wine"])
def test_public_sets_give_the_reference_values(name):
    assert float(trans_rate(*public_set(name))) == pytest.approx(REFERENCE[name], rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(sets, st.sampled_from([1e-4, 0.1, 10.0]))
def test_equals_the_slow_reference(samples, distortion):
    expected = slow(*samples, distortion)
    assert quietly(trans_rate, *samples, distortion) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(sets)
def test_is_not_negative_where_classes_have_equally_many_samples(samples):
    assert quietly(trans_rate, *samples) >= -1e-9


@settings(max_examples=30, deadline=None)
@given(samples=sets, seed=st.integers(0, 500))
def test_order_of_samples_names_of_classes_rotations_and_shifts_do_not_matter(samples, seed):
    features, target = samples
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(target), generator=generator)
    width = features.shape[1]
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    value = quietly(trans_rate, (features @ rotation + 3)[order], renamed(target[order], seed))
    assert value == pytest.approx(quietly(trans_rate, features, target), rel=1e-7, abs=1e-9)


def test_scale_of_features_and_distortion_are_one_thing():
    features, target = blobs()
    assert float(trans_rate(10 * features, target, 1e-2)) == pytest.approx(float(trans_rate(features, target)))


def test_no_more_samples_than_features_warns():
    with pytest.warns(UserWarning, match="TransRate says little here: 40 features of 36 samples"):
        trans_rate(*blobs(width=40))


def test_a_class_with_a_single_sample_warns():
    features, target = blobs()
    target[0] = 9
    with pytest.warns(UserWarning, match="1 classes have a single sample"):
        value = trans_rate(features, target)
    assert float(value) == pytest.approx(slow(features, target))


def test_float32_is_scored_in_double():
    features, target = blobs()
    value = trans_rate(features.float(), target)
    assert value.dtype == torch.float64
    assert value.shape == ()
    assert float(value) == pytest.approx(float(trans_rate(features, target)), rel=1e-5)


@pytest.mark.parametrize("distortion", [0.0, -1.0, float("nan")])
def test_a_distortion_that_is_not_above_zero_is_refused(distortion):
    with pytest.raises(ValueError, match="Expected `distortion` to be above 0"):
        trans_rate(*blobs(), distortion)
