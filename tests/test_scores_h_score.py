"""H-score, plain and regularised: reference values, a slow reference, bounds, invariances, and what they refuse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf

from pge_lightning.functional.scores import h_score, regularized_h_score
from score_samples import blobs, public_set, quietly, renamed

# On the plain score four public code bases agree, on the regularised one two.
REFERENCE = {"iris": (1.1918988250416636, 1.177842499331281), "wine": (1.7058208021292651, 1.6726003025686302)}
IRIS_FLOAT32 = 1.177842480406727  # the regularised score of iris, given in float32

sets = st.builds(blobs, seed=st.integers(0, 500), classes=st.integers(2, 5), width=st.integers(1, 8))
both = pytest.mark.parametrize("score", [h_score, regularized_h_score])


def between(features, target):
    """Covariance of class means over samples, times n, by loops."""
    centre = features.mean(0)
    parts = [features[target == name] for name in np.unique(target)]
    return sum(len(part) * np.outer(part.mean(0) - centre, part.mean(0) - centre) for part in parts)


def slow(features, target):
    features, target = features.numpy(), target.numpy()
    covariance = np.atleast_2d(np.cov(features.T, bias=True))
    return float(np.trace(np.linalg.pinv(covariance, rcond=1e-12) @ between(features, target))) / len(features)


def slow_regularized(features, target):
    features, target = features.numpy(), target.numpy()
    shrunk, shrinkage = ledoit_wolf(features)
    return (1 - shrinkage) * float(np.trace(np.linalg.inv(shrunk) @ between(features, target))) / (len(features) - 1)


@pytest.mark.parametrize("name", ["iris", "wine"])
def test_public_sets_give_the_reference_values(name):
    values = [float(score(*public_set(name))) for score in (h_score, regularized_h_score)]
    assert values == pytest.approx(REFERENCE[name], rel=1e-9)


def test_iris_in_float32_gives_the_reference_value():
    features, target = public_set("iris")
    assert float(regularized_h_score(features.float(), target)) == pytest.approx(IRIS_FLOAT32, rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(sets)
def test_equal_the_slow_references(samples):
    assert quietly(h_score, *samples) == pytest.approx(slow(*samples), rel=1e-9)
    assert quietly(regularized_h_score, *samples) == pytest.approx(slow_regularized(*samples), rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(sets, st.floats(0, 1))
def test_lie_between_zero_and_the_number_of_classes_less_one(samples, part):
    features = (1 - part) * samples[0] + part * torch.nn.functional.one_hot(samples[1])[:, :1]
    bound = int(samples[1].max())
    assert 0 <= quietly(h_score, features, samples[1]) <= bound
    assert 0 <= quietly(regularized_h_score, features, samples[1]) <= bound * len(features) / (len(features) - 1)


@both
@settings(max_examples=30, deadline=None)
@given(samples=sets, seed=st.integers(0, 500))
def test_order_of_samples_and_names_of_classes_do_not_matter(score, samples, seed):
    features, target = samples
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    value = quietly(score, features, target)
    assert quietly(score, features[order], renamed(target[order], seed)) == pytest.approx(value, rel=1e-9, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(samples=sets, seed=st.integers(0, 500))
def test_no_invertible_linear_map_changes_the_plain_score(samples, seed):
    features, target = samples
    width = features.shape[1]
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    scales = torch.logspace(-3, 3, width, dtype=torch.float64)
    mapped = features @ rotation * scales + 7
    assert quietly(h_score, mapped, target) == pytest.approx(quietly(h_score, features, target), rel=1e-7)


@settings(max_examples=30, deadline=None)
@given(samples=sets, seed=st.integers(0, 500), scale=st.floats(1e-3, 1e3))
def test_rotation_shift_and_common_scale_leave_the_regularised_score(samples, seed, scale):
    features, target = samples
    width = features.shape[1]
    noise = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mapped = scale * (features @ torch.linalg.qr(noise)[0] - 2)
    value = quietly(regularized_h_score, features, target)
    assert quietly(regularized_h_score, mapped, target) == pytest.approx(value, rel=1e-7, abs=1e-10)


def test_constant_repeated_and_dependent_features_add_nothing():
    features, target = blobs(width=3)
    mixed = features @ torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]], dtype=torch.float64)
    wider = torch.cat([features, torch.full((len(target), 2), 0.1, dtype=torch.float64), features[:, :1], mixed], 1)
    assert float(h_score(wider, target)) == pytest.approx(float(h_score(features, target)), rel=1e-9)
    assert float(h_score(wider.float(), target)) == pytest.approx(float(h_score(features, target)), rel=1e-5)


def test_few_samples_of_low_rank_are_scored_by_that_rank_with_a_warning():
    features, target = blobs(width=2)
    wider = features @ torch.randn(2, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with pytest.warns(UserWarning, match="60 features of 36 samples fit chance"):
        value = h_score(wider, target)
    assert float(value) == pytest.approx(float(h_score(features, target)), rel=1e-9)


@pytest.mark.parametrize("width", [35, 36, 100])
def test_samples_that_features_tell_apart_one_by_one_are_refused_by_the_plain_score_only(width):
    features, target = blobs(width=width)
    with pytest.raises(ValueError, match=f"36 samples and {width} features, which tell all samples apart"):
        quietly(h_score, features, target)
    assert quietly(regularized_h_score, features, target) == pytest.approx(slow_regularized(features, target))


def test_a_perfect_source_reaches_the_bound_with_a_warning():
    target = blobs()[1]
    with pytest.warns(UserWarning, match="at its bound 2, where it cannot tell sources apart"):
        value = h_score(torch.nn.functional.one_hot(target).double(), target)
    assert float(value) == pytest.approx(2.0)


def test_a_covariance_shrunk_completely_gives_zero_with_a_warning():
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.01], [0.0, -1.01]])
    with pytest.warns(UserWarning, match="shrunk completely"):
        assert not regularized_h_score(features, torch.tensor([0, 1, 0, 1]))


def test_a_covariance_that_is_singular_and_not_shrunk_is_scored_by_its_rank():
    signs = torch.tensor([1.0, 1.0, -1.0, -1.0])
    value = regularized_h_score(torch.stack([signs, signs], 1), torch.tensor([0, 0, 1, 1]))
    assert float(value) == pytest.approx(4 / 3)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_dtypes_are_scored_in_double(score, dtype):
    features, target = blobs()
    value = score(features.to(dtype), target)
    assert value.dtype == torch.float64
    assert value.shape == ()
    assert torch.equal(value, score(features.to(dtype).double(), target))
    assert float(value) == pytest.approx(float(score(features, target)), rel=1e-5 if dtype == torch.float32 else 0.05)
