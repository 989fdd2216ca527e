"""LEEP: reference values, a slow reference, bounds, invariances, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pge_lightning.functional.scores import leep, nce
from score_samples import distributions, head_of_seven, labels, public_set, quietly, renamed

# LEEP of iris and wine with the seven-class source head of `head_of_seven`, on which five public code bases agree.
REFERENCE = {"iris": -1.0508463593768758, "wine": -0.5890190353679198}


def slow(probabilities, target):
    """By nothing but loops over samples and classes."""
    rows, names = probabilities.tolist(), target.tolist()
    joint = {
        (y, z): math.fsum(row[z] for row, name in zip(rows, names, strict=True) if name == y)
        for y in set(names)
        for z in range(len(rows[0]))
    }
    total = [math.fsum(joint[y, z] for y in set(names)) for z in range(len(rows[0]))]
    logs = [
        math.log(math.fsum(p * joint[name, z] / total[z] for z, p in enumerate(row) if p))
        for row, name in zip(rows, names, strict=True)
    ]
    return math.fsum(logs) / len(logs)


def entropy(target):
    shares = target.unique(return_counts=True)[1].double() / len(target)
    return float(-(shares * shares.log()).sum())


@pytest.mark.parametrize("name", ["iris", "wine"])
def test_public_sets_give_the_reference_values(name):
    features, target = public_set(name)
    assert float(leep(head_of_seven(features), target)) == pytest.approx(REFERENCE[name], rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(distributions(), labels())
def test_equals_the_slow_reference(probabilities, target):
    assert quietly(leep, probabilities, target) == pytest.approx(slow(probabilities, target), rel=1e-9, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(distributions(), labels())
def test_lies_between_minus_the_entropy_of_the_target_and_zero(probabilities, target):
    assert -entropy(target) - 1e-12 <= quietly(leep, probabilities, target) <= 0.0


@settings(max_examples=40, deadline=None)
@given(labels(), st.integers(0, 2))
def test_perfect_one_hot_predictions_give_zero_whatever_further_classes_the_source_has(target, further):
    probabilities = torch.nn.functional.one_hot(target, int(target.max()) + 1 + further).double()
    assert quietly(leep, probabilities, target) == pytest.approx(0.0, abs=1e-15)


@settings(max_examples=40, deadline=None)
@given(labels())
def test_certain_predictions_give_the_negative_conditional_entropy(target):
    certain = torch.arange(len(target)) % 3
    probabilities = torch.nn.functional.one_hot(certain).double()
    assert quietly(leep, probabilities, target) == pytest.approx(quietly(nce, certain, target), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(distributions(), labels(), st.randoms(use_true_random=False))
def test_order_of_samples_and_names_of_classes_do_not_matter(probabilities, target, random):
    order, columns = list(range(len(target))), list(range(probabilities.shape[1]))
    random.shuffle(order)
    random.shuffle(columns)
    value = quietly(leep, probabilities, target)
    assert quietly(leep, probabilities[order][:, columns], renamed(target[order])) == pytest.approx(value, abs=1e-12)


def test_half_precision_is_scored_in_double():
    features, target = public_set("iris")
    probabilities = head_of_seven(features)
    value = leep(probabilities.bfloat16(), target.to(torch.uint8))
    assert value.dtype == torch.float64
    assert value.shape == ()
    assert float(value) == pytest.approx(float(leep(probabilities, target)), abs=5e-3)


def test_a_source_that_predicts_the_same_everywhere_gives_minus_the_entropy_with_a_warning():
    target = torch.tensor([0, 0, 0, 1, 2, 2])
    with pytest.warns(UserWarning, match="the source predicts the same for every sample"):
        value = leep(torch.tensor([[0.3, 0.7]]).expand(6, 2), target)
    assert float(value) == pytest.approx(-entropy(target))


def test_a_value_at_its_bound_warns():
    with pytest.warns(UserWarning, match="at its bound 0"):
        leep(torch.eye(3)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 2]))


@pytest.mark.parametrize(
    ("probabilities", "reason"),
    [
        (torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), "Pass logits through a softmax"),
        (torch.tensor([[1.5, -0.5]] * 4), "at least 0"),
        (torch.full((4, 3), 0.3), "sums from 0.9 to 0.9"),
        (torch.tensor([[math.nan, 1.0]] * 4), "Expected finite probabilities"),
        (torch.full((4,), 0.5), "shape .n, K. for 4 samples"),
        (torch.full((5, 2), 0.5), "shape .n, K. for 4 samples"),
        (torch.ones(4, 2, dtype=torch.int64), "floating dtype"),
    ],
)
def test_what_is_no_distribution_is_refused(probabilities, reason):
    with pytest.raises(ValueError, match=reason):
        leep(probabilities, torch.tensor([0, 1, 0, 1]))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (torch.tensor([1, 1, 1, 1]), "at least two classes"),
        (torch.tensor([0, 1, 2, 3]), "each of the 4 classes has a single one"),
        (torch.tensor([0.0, 1.0, 0.0, 1.0]), "integer dtype"),
    ],
)
def test_targets_that_cannot_be_scored_are_refused(target, reason):
    with pytest.raises(ValueError, match=reason):
        leep(torch.full((4, 2), 0.5), target)
