"""The linear probe: slow references, the splits, few samples per class, invariances, and what is refused."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge

from pge_lightning.functional.scores import linear_probe, linear_probe_folds
from pge_lightning.functional.scores.linear_probe import fold_numbers
from score_samples import blobs, labels, public_set, quietly, renamed


def slow(features, target, classifier, strength, measure="accuracy", folds=3, repeats=2):
    """One model of scikit-learn for every fold."""
    x, y = features.numpy(), target.numpy()
    deviation = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    penalty = strength * np.linalg.eigvalsh(x.T @ x).sum() / min(x.shape)
    judged = []
    for numbers in fold_numbers(target, folds, repeats, seed=0).numpy():
        for fold in range(folds):
            kept, out = numbers != fold, numbers == fold
            if classifier == "ridge":
                guesses = Ridge(alpha=penalty).fit(x[kept], np.eye(y.max() + 1)[y[kept]]).predict(x[out])
            else:
                guesses = LogisticRegression(C=1 / penalty, max_iter=1000).fit(x[kept], y[kept]).predict_proba(x[out])
            own = np.clip(guesses[np.arange(len(guesses)), y[out]], 0, 1)
            judged.append(np.mean(guesses.argmax(axis=1) == y[out] if measure == "accuracy" else own))
    return judged


@pytest.mark.parametrize("measure", ["accuracy", "confidence"])
@pytest.mark.parametrize("classifier", ["ridge", "logistic"])
@pytest.mark.parametrize("name", ["iris", "wine"])
def test_equals_a_model_of_scikit_learn_for_every_fold(name, classifier, measure):
    features, target = public_set(name)
    options = {"repeats": 2, "classifier": classifier, "strength": 0.3, "measure": measure}
    folds = linear_probe_folds(features, target, **options)
    assert folds.tolist() == pytest.approx(slow(features, target, classifier, 0.3, measure), rel=1e-4)
    assert torch.equal(linear_probe(features, target, **options), folds.mean())


def test_more_features_than_samples_give_what_the_long_way_gives():
    features, target = blobs(width=100, spread=2.0)
    folds = linear_probe_folds(features, target, repeats=2)
    assert folds.tolist() == pytest.approx(slow(features, target, "ridge", 0.2), abs=1e-12)
    assert 0.3 < float(folds.mean()) < 1.0


@settings(max_examples=40, deadline=None)
@given(labels(samples=20, most=6), st.integers(2, 20), st.integers(0, 10))
def test_folds_are_even_and_so_is_every_class_over_them(target, folds, seed):
    target = target.unique(return_inverse=True)[1]
    for numbers in fold_numbers(target, folds, 2, seed):
        sizes = numbers.bincount(minlength=folds)
        assert int(sizes.max() - sizes.min()) <= 1
        for name in target.unique():
            parts = numbers[target == name].bincount(minlength=folds)
            assert int(parts.max() - parts.min()) <= 1


@settings(max_examples=40, deadline=None)
@given(labels(samples=20, most=6), st.permutations(range(6)))
def test_splits_do_not_depend_on_the_names_of_classes(target, names):
    again = torch.tensor(names)[target].unique(return_inverse=True)[1]
    target = target.unique(return_inverse=True)[1]
    assert torch.equal(fold_numbers(target, 3, 4, seed=1), fold_numbers(again, 3, 4, seed=1))


def test_splits_differ_between_repeats_and_seeds():
    target = torch.arange(4).repeat(8)
    splits = torch.cat([fold_numbers(target, 3, 3, seed) for seed in range(3)])
    assert len(splits.unique(dim=0)) == 9


def test_all_sources_are_judged_on_the_same_samples():
    features, target = blobs(spread=2.0)
    useless = torch.randn(len(target), 5, generator=torch.Generator().manual_seed(1))
    better, worse = (linear_probe_folds(source, target) for source in (features, useless))
    assert better.shape == worse.shape == (15,)
    paired = (better - worse).std()
    assert float((better - worse).mean()) > 3 * float(paired) / 15**0.5
    assert torch.equal(better, linear_probe_folds(features, target))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_scale_and_shift_of_features_and_names_of_classes_do_not_matter(seed, scale, shift):
    features, target = blobs(seed)
    scales = scale * torch.arange(1.0, 6.0).double()
    again = linear_probe_folds(features * scales + shift, renamed(target))
    assert again.tolist() == linear_probe_folds(features, target).tolist()


def test_a_constant_feature_changes_nothing():
    features, target = blobs()
    padded = torch.cat([features, torch.full((len(features), 1), 7.0)], dim=1)
    assert torch.equal(linear_probe_folds(padded, target), linear_probe_folds(features, target))


@pytest.mark.parametrize("classifier", ["ridge", "logistic"])
def test_classes_of_fewer_samples_than_folds_are_judged_as_well(classifier):
    features, target = blobs(per_class=8, spread=0.01)
    kept = torch.cat([(target == name).nonzero()[:size, 0] for name, size in ((0, 8), (1, 8), (2, 2))])
    folds = linear_probe_folds(features[kept], target[kept], folds=6, classifier=classifier)
    assert folds.tolist() == [1.0] * 30


@pytest.mark.parametrize("classifier", ["ridge", "logistic"])
def test_a_class_of_one_sample_is_never_right_and_warns(classifier):
    features, target = blobs(classes=2, per_class=8, spread=0.01)
    target = torch.where(torch.arange(16) == 3, 5, target)
    with pytest.warns(UserWarning, match="Linear probe says little here: 1 classes have a single sample"):
        value = linear_probe(features, target, folds=16, repeats=1, classifier=classifier)
    assert float(value) == pytest.approx(15 / 16)


def test_confidence_tells_sources_apart_that_are_equally_accurate():
    wide, tight = (blobs(spread=spread) for spread in (0.05, 0.02))
    assert torch.equal(linear_probe(*wide), linear_probe(*tight))
    assert linear_probe(*wide, measure="confidence") < linear_probe(*tight, measure="confidence") < 1.0


def test_shuffled_classes_leave_chance():
    target = torch.arange(4).repeat(50)
    noise = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    assert float(linear_probe(noise, target)) == pytest.approx(0.25, abs=0.08)


@pytest.mark.parametrize(("samples", "width"), [(100, 2048), (5000, 64)])
def test_one_penalty_serves_few_samples_and_many(samples, width):
    # A signal in one direction of many, with noise enough that a perfect fit would be a bad one.
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(2).repeat(samples // 2)
    features = torch.randn(samples, width, generator=generator)
    features += (2.0 / 64**0.5) * (2 * target[:, None] - 1) * torch.randn(width, generator=generator).sign()
    assert float(linear_probe(features, target, repeats=1)) > 0.95


def test_ridge_takes_a_fraction_of_a_second_at_few_labels():
    features, target = blobs(classes=10, per_class=20, width=64)
    linear_probe(features, target)
    begin = time.process_time()
    linear_probe(features, target)
    assert time.process_time() - begin < 0.2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"folds": 1}, "Expected `folds` from 2 to the 36 samples"),
        ({"folds": 37}, "Expected `folds` from 2 to the 36 samples"),
        ({"repeats": 0}, "Expected `repeats` to be at least 1"),
        ({"classifier": "forest"}, "Expected `classifier` to be one of .'ridge', 'logistic'."),
        ({"strength": 0.0}, "Expected `strength` above 0"),
        ({"measure": "recall"}, "Expected `measure` to be 'accuracy' or 'confidence'"),
    ],
)
def test_arguments_out_of_range_are_refused(options, reason):
    with pytest.raises(ValueError, match=reason):
        linear_probe(*blobs(), **options)


def test_classes_to_fit_or_judge_by_must_be_two():
    features = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="Expected two classes of at least two samples"):
        linear_probe(features, torch.tensor([0, 0, 0, 1, 2]))


def test_features_that_cannot_be_scored_are_refused():
    features, target = blobs()
    with pytest.raises(ValueError, match="every feature is constant"):
        linear_probe(torch.ones_like(features), target)
    with pytest.raises(ValueError, match="Expected finite features"):
        quietly(linear_probe, features / 0.0, target)
