"""Checks of the inputs of feature scores: what they refuse, what they pass on, and how they warn."""

import math

import pytest
import torch

from pge_lightning.functional.scores import h_score
from pge_lightning.functional.scores.checks import check_classes, check_features, check_labels, class_means
from score_samples import blobs, renamed

FEATURES, TARGET = blobs()


def with_value(value):
    features = FEATURES.clone()
    features[3, 2] = value
    return features


def test_classes_are_numbered_in_the_order_of_their_names():
    assert check_classes(torch.tensor([7, -3, 7, 90], dtype=torch.int16)).tolist() == [1, 0, 1, 2]


def test_names_of_classes_leave_the_numbers_dense_and_the_partition_the_same():
    numbers = check_classes(renamed(TARGET))
    assert sorted(set(numbers.tolist())) == [0, 1, 2]
    assert torch.equal(numbers[:, None] == numbers, TARGET[:, None] == TARGET)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_features_come_back_in_double_without_a_gradient(dtype):
    features, target = check_features(FEATURES.to(dtype).requires_grad_(), TARGET.to(torch.uint8))
    assert features.dtype == torch.float64
    assert not features.requires_grad
    assert torch.equal(features, FEATURES.to(dtype).double())
    assert torch.equal(target, TARGET)


def test_boolean_targets_are_two_classes():
    assert check_classes(torch.tensor([True, False, True])).tolist() == [1, 0, 1]


def test_labels_may_be_of_one_class():
    assert check_labels(torch.tensor([5, 5]), "labels").tolist() == [0, 0]


def test_class_means_equal_a_loop():
    means = class_means(FEATURES, TARGET)
    for number, mean in enumerate(means):
        torch.testing.assert_close(mean, FEATURES[number == TARGET].mean(0))


@pytest.mark.parametrize(
    ("features", "target", "reason"),
    [
        (FEATURES[0], TARGET, r"Expected features of shape \[n, d\], but got \[5\]"),
        (FEATURES[:, :0], TARGET, r"Expected features of shape \[n, d\], but got \[36, 0\]"),
        (FEATURES.unflatten(1, (5, 1)), TARGET, "Flatten them first"),
        (FEATURES[:-1], TARGET, "got 35 samples and 36 targets"),
        (FEATURES.long(), TARGET, "Expected features of a floating dtype, but got torch.int64"),
        (with_value(math.nan), TARGET, "got 1 values that are NaN or infinite"),
        (with_value(-math.inf), TARGET, "Expected finite features"),
        (FEATURES[:1].expand(36, 5), TARGET, "every feature is constant"),
        (FEATURES, TARGET.double(), "Expected target of an integer dtype"),
        (FEATURES, TARGET[:, None], r"Expected target of shape \[n\], but got \[36, 1\]"),
        (FEATURES, torch.full_like(TARGET, 4), "Expected at least two classes in the target, but got 1"),
        (FEATURES[:0], TARGET[:0], "Expected features that vary|at least two classes"),
        (FEATURES, torch.arange(36), "each of the 36 classes has a single one"),
    ],
)
def test_inputs_without_meaning_are_refused(features, target, reason):
    with pytest.raises(ValueError, match=reason):
        check_features(features, target)


def test_warnings_point_at_the_line_that_called_the_score():
    with pytest.warns(UserWarning, match="at its bound 1") as caught:
        h_score(torch.tensor([[0.0], [0.0], [1.0], [1.0]]), torch.tensor([0, 0, 1, 1]))
    assert [warning.filename for warning in caught] == [__file__]
