"""PACTran: a slow reference, invariances, how it reacts, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.autograd.functional import hessian

from pge_lightning.functional.scores import pactran
from score_samples import blobs, public_set, quietly, renamed


def slow(features, target, strength, variance):
    """The bound as it is derived, over the posterior's variance, with the Hessian by automatic differentiation."""
    x = features - features.mean(dim=0)
    samples, width = x.shape
    classes = int(target.max()) + 1

    def loss(weights, bias):
        return torch.nn.functional.cross_entropy(x @ weights.reshape(width, classes) + bias, target)

    def objective(theta):
        point = torch.tensor(theta, requires_grad=True)
        weights, bias = point[: width * classes], point[width * classes :]
        value = loss(weights, bias) + weights.square().sum() / (2 * strength * samples)
        value.backward()
        return value.item(), point.grad.numpy()

    start = torch.zeros((width + 1) * classes, dtype=torch.float64).numpy()
    best = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    weights, bias = torch.tensor(best.x[: width * classes]), torch.tensor(best.x[width * classes :])
    trace = float(hessian(lambda w: loss(w, bias), weights).trace())
    prior = variance / width
    temperature = strength * samples / prior
    freedom = width * classes

    def bound(log_posterior):
        posterior = math.exp(log_posterior)
        ratio = posterior / prior
        return 0.5 * posterior * trace + freedom / (2 * temperature) * (ratio - 1 - math.log(ratio))

    return -best.fun - minimize(lambda u: bound(float(u[0])), [math.log(prior)], tol=1e-12).fun


@pytest.mark.parametrize("name", ["iris", "wine"])
@pytest.mark.parametrize(("strength", "variance"), [(1.0, 10.0), (0.1, 10.0)])
def test_equals_the_bound_minimised_by_hand(name, strength, variance):
    features, target = public_set(name)
    value = float(pactran(features, target, strength, variance))
    assert value == pytest.approx(slow(features, target, strength, variance), rel=1e-5)


def test_two_classes_are_penalised_like_any_other_number():
    features, target = public_set("wine")
    two = target < 2
    assert float(pactran(features[two], target[two])) == pytest.approx(
        slow(features[two], target[two], 1.0, 10.0), rel=1e-5
    )


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([2, 3]), st.randoms(use_true_random=False))
def test_order_of_samples_names_of_classes_and_origin_do_not_matter(seed, classes, random):
    features, target = blobs(seed, classes)
    order = list(range(len(target)))
    random.shuffle(order)
    value = quietly(pactran, features, target)
    assert quietly(pactran, features[order] + 10.0, renamed(target[order])) == pytest.approx(value, rel=1e-5)
    assert value < 0.0


def test_separate_classes_score_higher_than_mixed_ones():
    assert quietly(pactran, *blobs(spread=0.3)) > quietly(pactran, *blobs(spread=3.0))


def test_more_features_than_samples_warn():
    with pytest.warns(UserWarning, match="PACTran says little here: 50 features of 36 samples fit chance"):
        pactran(*blobs(width=50))


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"variance": -1.0}, {"strength": math.nan}])
def test_arguments_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="Expected `strength` and `variance` above 0"):
        pactran(*blobs(), **options)


def test_features_that_cannot_be_scored_are_refused():
    features, target = blobs()
    with pytest.raises(ValueError, match="Expected finite features"):
        pactran(features.log(), target)
