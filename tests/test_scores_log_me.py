"""LogME: reference values, a slow reference, its maximum, invariances, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from pge_lightning.functional.scores import log_me
from score_samples import blobs, public_set, quietly, renamed

REFERENCE = {"iris": -0.1600602436621256, "wine": -0.537707000389145}  # two public code bases agree
IRIS_FLOAT32 = -0.16006022033609904  # iris given in float32, by a package that starts each class at the last one's end

sets = st.builds(blobs, seed=st.integers(0, 500), classes=st.integers(2, 5), width=st.integers(1, 60))
CONVERGED = {"tolerance": 1e-9}


def slow(features, target, iterations):
    """The published iteration, a class at a time, by the singular value decomposition."""
    features, target = features.numpy(), target.numpy()
    n = len(features)
    left, singular, _ = np.linalg.svd(features)
    squares = np.zeros(n)
    squares[: len(singular)] = singular**2
    evidences = []
    for name in np.unique(target):
        projected = (left.T @ (target == name)) ** 2
        alpha = beta = 1.0
        for _ in range(iterations):
            ratio = alpha / beta
            used = (squares / (squares + ratio)).sum()
            weights = (squares * projected / (squares + ratio) ** 2).sum()
            residuals = (projected * ratio**2 / (squares + ratio) ** 2).sum()
            alpha, beta = used / (weights + 1e-5), (n - used) / (residuals + 1e-5)
            if abs(alpha / beta - ratio) <= 1e-3 * ratio:
                break
        determinant = np.log(1 + beta / alpha * squares).sum()
        data = n * math.log(beta / (2 * math.pi)) - beta * residuals
        evidences.append((data - determinant - alpha * weights) / (2 * n))
    return float(np.mean(evidences))


def greatest_evidence(features, column):
    """Maximum over both precisions of the density of the column, by a general optimiser."""
    gram = (features @ features.T).numpy()

    def loss(logs):
        covariance = gram / math.exp(logs[0]) + np.eye(len(gram)) / math.exp(logs[1])
        return -multivariate_normal(cov=covariance).logpdf(column.numpy())

    return -minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10}).fun / len(gram)


@pytest.mark.parametrize("name", ["iris", "wine"])
def test_public_sets_give_the_reference_values(name):
    assert float(log_me(*public_set(name))) == pytest.approx(REFERENCE[name], rel=1e-9)


def test_iris_in_float32_gives_the_reference_value():
    features, target = public_set("iris")
    assert float(log_me(features.float(), target)) == pytest.approx(IRIS_FLOAT32, rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(sets, st.sampled_from([11, 1000]))
def test_equals_the_slow_reference_with_more_and_with_fewer_samples_than_features(samples, iterations):
    assert quietly(log_me, *samples, iterations) == pytest.approx(slow(*samples, iterations), rel=1e-8)


@pytest.mark.parametrize("width", [4, 30])
def test_iterated_to_the_end_it_is_the_greatest_evidence_of_real_targets(width):
    features, target = blobs(width=width, per_class=6)
    noise = torch.randn(len(target), 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    columns = features[:, :2] + noise
    expected = [greatest_evidence(features, column) for column in columns.T]
    values = [quietly(log_me, features, column, **CONVERGED) for column in columns.T]
    assert values == pytest.approx(expected, abs=1e-5)
    assert quietly(log_me, features, columns, **CONVERGED) == pytest.approx(sum(values) / 2, rel=1e-12)


def test_classes_are_the_mean_of_real_targets_of_zeros_and_ones():
    features, target = blobs()
    columns = torch.nn.functional.one_hot(target).float()
    assert torch.equal(log_me(features, target), log_me(features, columns))


@settings(max_examples=30, deadline=None)
@given(samples=sets, seed=st.integers(0, 500))
def test_order_of_samples_names_of_classes_and_rotations_do_not_matter(samples, seed):
    features, target = samples
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(target), generator=generator)
    width = features.shape[1]
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    value = quietly(log_me, (features @ rotation)[order], renamed(target[order], seed))
    assert value == pytest.approx(quietly(log_me, features, target), rel=1e-8)


def test_features_that_are_always_zero_change_nothing():
    features, target = blobs()
    for further in (4, 100):
        wider = torch.cat([features, torch.zeros(len(target), further)], 1)
        assert quietly(log_me, wider, target) == pytest.approx(float(log_me(features, target)), rel=1e-12)


def test_iterated_to_the_end_the_scale_of_features_does_not_matter():
    features, target = blobs()
    values = [float(log_me(scale * features, target, **CONVERGED)) for scale in (0.01, 1.0, 2.0)]
    assert values == pytest.approx(3 * values[:1], rel=1e-6)


def test_further_iterations_find_a_greater_evidence_where_features_say_little():
    samples = blobs(width=20, spread=5.0)
    published, default, end = (float(log_me(*samples, count, 1e-3)) for count in (11, 1000, 5000))
    assert published < default
    assert default == end


def test_features_that_tell_more_score_higher():
    clear, blurred = (blobs(spread=spread) for spread in (0.3, 3.0))
    assert float(log_me(*clear)) > float(log_me(*blurred))


def test_no_more_samples_than_features_warns():
    with pytest.warns(UserWarning, match="LogME says little here: 36 features of 36 samples"):
        log_me(*blobs(width=36))


def test_float32_is_scored_in_double():
    features, target = blobs()
    value = log_me(features.float(), target)
    assert value.dtype == torch.float64
    assert value.shape == ()
    assert torch.equal(value, log_me(features.float().double(), target))
    assert float(value) == pytest.approx(float(log_me(features, target)), rel=1e-5)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (torch.ones(36, 2, 2), r"shape \[n\] or \[n, k\], but got \[36, 2, 2\]"),
        (torch.ones(36, 0), r"shape \[n\] or \[n, k\], but got \[36, 0\]"),
        (torch.ones(35), "36 samples and 35 targets"),
        (torch.full((36,), math.nan), "Expected finite targets"),
        (torch.stack([torch.arange(36.0), torch.ones(36)], 1), "a column is constant"),
        (torch.ones(36, dtype=torch.int64), "at least two classes"),
    ],
)
def test_targets_that_cannot_be_scored_are_refused(target, reason):
    with pytest.raises(ValueError, match=reason):
        log_me(blobs()[0], target)


def test_fewer_than_one_iteration_is_refused():
    with pytest.raises(ValueError, match="Expected `iterations` to be at least 1, but got 0"):
        log_me(*blobs(), iterations=0)
