"""NCE: reference values, a slow reference, bounds, invariances, and what it refuses."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pge_lightning.functional.scores import nce
from score_samples import head_of_seven, labels, public_set, quietly, renamed

# NCE of iris and wine, source labels being the most probable classes of the seven-class head of `head_of_seven`; four
# public code bases agree. On iris this head puts all samples into one class.
REFERENCE = {"iris": -1.0986122886681084, "wine": -0.4623409674394165}


def slow(source, target):
    pairs = Counter(zip(source.tolist(), target.tolist(), strict=True))
    sources = Counter(source.tolist())
    return math.fsum(count * math.log(count / sources[z]) for (z, _), count in pairs.items()) / len(target)


@pytest.mark.parametrize("name", ["iris", "wine"])
def test_public_sets_give_the_reference_values(name):
    features, target = public_set(name)
    assert quietly(nce, head_of_seven(features).argmax(dim=1), target) == pytest.approx(REFERENCE[name], rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(labels(most=6), labels())
def test_equals_the_slow_reference_within_its_bounds(source, target):
    value = quietly(nce, source, target)
    assert value == pytest.approx(slow(source, target), abs=1e-12)
    assert -math.log(len(target.unique())) - 1e-12 <= value <= 0.0


@settings(max_examples=30, deadline=None)
@given(labels(most=6), labels(), st.randoms(use_true_random=False))
def test_order_of_samples_and_names_of_classes_on_both_sides_do_not_matter(source, target, random):
    order = list(range(len(target)))
    random.shuffle(order)
    again = quietly(nce, renamed(source[order], seed=1), renamed(target[order], seed=2))
    assert again == pytest.approx(quietly(nce, source, target), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(labels())
def test_the_target_itself_gives_zero_with_a_warning(target):
    with pytest.warns(UserWarning, match="at its bound 0"):
        assert float(nce(renamed(target), target)) == pytest.approx(0.0, abs=1e-15)


def test_a_single_source_class_gives_minus_the_entropy_with_a_warning():
    with pytest.warns(UserWarning, match="every sample into one class"):
        value = nce(torch.full((6,), 4), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(-math.log(3))


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        (torch.tensor([0, 1, 0]), torch.tensor([0, 1, 0, 1]), "got 3 for 4 samples"),
        (torch.tensor([0, 1, 0, 1]), torch.tensor([1, 1, 1, 1]), "at least two classes"),
        (torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0, 1, 0, 1]), "source labels of an integer dtype"),
        (torch.zeros(4, 2, dtype=torch.int64), torch.tensor([0, 1, 0, 1]), "source labels of shape .n."),
    ],
)
def test_labels_that_cannot_be_scored_are_refused(source, target, reason):
    with pytest.raises(ValueError, match=reason):
        nce(source, target)
