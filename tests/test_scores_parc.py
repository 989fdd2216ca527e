"""PARC: reference values, a slow reference, bounds, invariances, and what it refuses."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from pge_lightning.functional.scores import parc
from score_samples import blobs, public_set, quietly, renamed

REFERENCE = {"iris": 61.2170104885269, "wine": 64.86525511998636}  # one public code base

sets = st.builds(
    blobs, seed=st.integers(0, 500), classes=st.integers(2, 4), per_class=st.just(6), width=st.integers(3, 8)
)


def slow(features, target):
    """Pair by pair, with label distances of 0 and 1."""
    features = (features - features.mean(0)) / features.std(0, unbiased=False)
    pairs = list(itertools.combinations(range(len(target)), 2))
    apart = [1 - pearsonr(features[i].numpy(), features[j].numpy()).statistic for i, j in pairs]
    return 100 * float(spearmanr(apart, [float(target[i] != target[j]) for i, j in pairs]).statistic)


@pytest.mark.parametrize("name", ["iris", "wine"])
def test_public_sets_give_the_reference_values(name):
    assert float(parc(*public_set(name))) == pytest.approx(REFERENCE[name], rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(sets)
def test_with_exact_ties_it_equals_the_slow_reference(samples):
    assert quietly(parc, *samples, ties="exact") == pytest.approx(slow(*samples), rel=1e-9, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(sets, st.sampled_from(["published", "exact"]))
def test_lies_between_minus_and_plus_one_hundred(samples, ties):
    assert -100 <= quietly(parc, *samples, ties) <= 100


@settings(max_examples=30, deadline=None)
@given(samples=sets, seed=st.integers(0, 500))
def test_with_exact_ties_order_of_samples_and_names_of_classes_do_not_matter(samples, seed):
    features, target = samples
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(seed))
    value = quietly(parc, features[order], renamed(target[order], seed), ties="exact")
    assert value == pytest.approx(quietly(parc, features, target, ties="exact"), rel=1e-9, abs=1e-9)


def test_two_classes_have_no_ties_that_rounding_could_split():
    samples = blobs(classes=2)
    assert float(parc(*samples)) == pytest.approx(float(parc(*samples, ties="exact")), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(samples=sets, scale=st.floats(0.01, 100))
def test_scale_and_shift_of_each_feature_do_not_matter(samples, scale):
    features, target = samples
    mapped = features * torch.logspace(-1, 1, features.shape[1], dtype=torch.float64) * scale - 4
    assert quietly(parc, mapped, target) == pytest.approx(quietly(parc, features, target), abs=1e-6)


def test_constant_features_count_as_zero():
    features, target = blobs()
    wider = torch.cat([features, torch.full((36, 1), 0.1)], 1)
    standardised = (features - features.mean(0)) / features.std(0, unbiased=False)
    rows = np.corrcoef(torch.cat([standardised, torch.zeros(36, 1)], 1).numpy())
    above = np.triu_indices(36, 1)
    expected = 100 * spearmanr(-rows[above], (target[:, None] != target).numpy()[above]).statistic
    assert float(parc(wider, target, "exact")) == pytest.approx(expected)


def test_two_features_warn():
    with pytest.warns(UserWarning, match="two features correlate by -1 or 1 only"):
        parc(*blobs(width=2))


def test_samples_whose_features_are_all_equal_are_refused():
    with pytest.raises(ValueError, match="but 36 have equal ones, which correlate with nothing"):
        parc(*blobs(width=1))


def test_float32_is_scored_in_double():
    features, target = blobs()
    value = parc(features.float(), target)
    assert value.dtype == torch.float64
    assert value.shape == ()
    assert float(value) == pytest.approx(float(parc(features, target)), rel=1e-3)


def test_unknown_ties_are_refused():
    with pytest.raises(ValueError, match=r"Expected `ties` to be one of .*, but got 'average'"):
        parc(*blobs(), ties="average")
