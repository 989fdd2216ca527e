"""Nearest neighbours: reference values, a slow reference, ties, invariances, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pge_lightning.functional.scores import knn_accuracy
from score_samples import blobs, labels, public_set, quietly, renamed

# Leave-one-out accuracy on iris in float32.
REFERENCE = {1: 0.96, 5: 0.9666666666666667}


def slow(features, target, k):
    """By the definition, one sample after the other; whole numbers as features make distances exact."""
    right = 0.0
    for row, own in enumerate(target.tolist()):
        others = [i for i in range(len(target)) if i != row]
        distance = {i: math.fsum((a - b) ** 2 for a, b in zip(features[row], features[i], strict=True)) for i in others}
        limit = sorted(distance.values())[k - 1]
        votes = [int(target[i]) for i in others if distance[i] <= limit]
        most = max(votes.count(name) for name in votes)
        winners = {name for name in votes if votes.count(name) == most}
        right += (own in winners) / len(winners)
    return right / len(target)


@pytest.mark.parametrize("k", REFERENCE)
def test_iris_gives_the_reference_values(k):
    features, target = public_set("iris")
    assert float(knn_accuracy(features.float(), target, k=k)) == pytest.approx(REFERENCE[k], rel=1e-12)


# Whole numbers meet at equal distances and in equal places all the time.
GRIDS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=12, max_size=12).filter(
    lambda points: len(set(points)) > 1
)


@settings(max_examples=40, deadline=None)
@given(GRIDS, labels(), st.integers(1, 11))
def test_equals_the_slow_reference_with_ties_and_duplicates(points, target, k):
    assert quietly(knn_accuracy, torch.tensor(points).float(), target, k) == pytest.approx(slow(points, target, k))


@settings(max_examples=30, deadline=None)
@given(GRIDS, labels(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_order_of_samples_and_names_of_classes_do_not_matter(points, target, k, random):
    order = list(range(len(target)))
    random.shuffle(order)
    features = torch.tensor(points).double()
    again = quietly(knn_accuracy, features[order], renamed(target[order]), k)
    assert again == pytest.approx(quietly(knn_accuracy, features, target, k))


@settings(max_examples=40, deadline=None)
@given(GRIDS, labels(), st.floats(-1e4, 1e4), st.floats(1e-3, 1e3))
def test_a_shift_and_a_common_scale_do_not_matter(points, target, shift, scale):
    features = torch.tensor(points).double()
    moved = quietly(knn_accuracy, features * scale + shift, target, 3)
    assert moved == pytest.approx(quietly(knn_accuracy, features, target, 3))


def test_samples_are_taken_in_pieces_without_a_seam(monkeypatch):
    features, target = blobs(per_class=20)
    whole = knn_accuracy(features, target)
    monkeypatch.setattr("pge_lightning.functional.scores.knn.CHUNK", 7)
    assert torch.equal(knn_accuracy(features, target), whole)


def test_a_class_of_one_sample_is_never_right_and_warns():
    features = torch.tensor([[0.0], [0.1], [0.2], [0.3], [9.0]])
    with pytest.warns(UserWarning, match="kNN accuracy says little here: 1 classes have a single sample"):
        assert float(knn_accuracy(features, torch.tensor([0, 0, 0, 0, 1]), k=1)) == pytest.approx(0.8)


@pytest.mark.parametrize("k", [0, 36])
def test_more_neighbours_than_others_are_refused(k):
    with pytest.raises(ValueError, match="Expected `k` from 1 to one less than the 36 samples"):
        knn_accuracy(*blobs(), k=k)


def test_features_that_cannot_be_scored_are_refused():
    features, target = blobs()
    with pytest.raises(ValueError, match="every feature is constant"):
        knn_accuracy(torch.ones_like(features), target)
    with pytest.raises(ValueError, match="Expected finite features"):
        knn_accuracy(features / 0.0, target)
