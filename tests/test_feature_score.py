"""Feature scores as estimators: the score of what each source makes of the target."""

import dataclasses
import math

import pytest
import torch
from scipy import stats

from feature_sources import about, library_of, net, put, trained
from pge_lightning.errors import SilentError
from pge_lightning.estimators import Estimate, FeatureScore
from pge_lightning.estimators.feature_score import OF_FEATURES, OF_PREDICTIONS, SCORES
from pge_lightning.estimators.features import Features, LabelsError
from pge_lightning.functional import scores
from pge_lightning.rank import rank_sources
from score_samples import blobs, head_of_seven
from trainer_helpers import failing, make_data


@pytest.fixture(scope="module")
def found():
    features, labels = blobs(per_class=20)
    return Features(features.float(), labels, head_of_seven(features))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Sources that have learned the target's rule, another rule and nothing."""
    modules = {"other": trained(5), "same": trained(0), "untrained": net(0)}
    return library_of(tmp_path_factory.mktemp("library"), **modules)


def test_every_score_of_the_package_is_there():
    public = {"linear_probe" if name == "linear_probe_folds" else name for name in scores.__all__}
    assert {"knn" if name == "knn_accuracy" else name for name in public} == set(SCORES)


@pytest.mark.parametrize("score", [name for name in OF_FEATURES if name != "linear_probe"])
def test_a_score_of_features_is_that_of_its_function(score, found):
    expected = OF_FEATURES[score](found.features, found.classes).item()
    assert FeatureScore(score).measure(found) == Estimate(expected)
    # The labels' type and the source's head make no difference.
    alone = Features(found.features, found.labels.to(torch.int32))
    assert FeatureScore(score).measure(alone) == Estimate(expected)


def test_a_linear_probe_gives_its_folds(found):
    folds = scores.linear_probe_folds(found.features, found.classes, folds=4, repeats=2)
    estimate = FeatureScore("linear_probe", {"folds": 4, "repeats": 2}).measure(found)
    assert estimate.replicates == tuple(folds.tolist())
    assert estimate.value == pytest.approx(folds.mean().item())
    # One fold holds a third of the samples that its classifier sees: of 8 folds with variance s, the mean's variance
    # is s (1/8 + 1/3), and not s/8, as if they shared no samples.
    error = folds.std().item() * math.sqrt(1 / 8 + 1 / 3)
    assert estimate.standard_error == pytest.approx(error)
    margin = stats.t.ppf(0.975, 7) * error
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - margin, estimate.value + margin))


@pytest.mark.parametrize("score", OF_PREDICTIONS)
def test_a_score_of_predictions_takes_the_sources_head(score, found):
    function = {"leep": scores.leep, "nce": scores.nce}[score]
    predicted = found.probabilities if score == "leep" else found.probabilities.argmax(1)
    assert FeatureScore(score).measure(found) == Estimate(function(predicted, found.classes).item())
    with pytest.raises(SilentError, match=f"one linear layer as its head for {score}"):
        FeatureScore(score).measure(dataclasses.replace(found, probabilities=None))


def test_log_me_takes_classes_and_numbers(found):
    by_classes = FeatureScore("log_me").measure(found)
    assert by_classes == Estimate(scores.log_me(found.features, found.classes).item())
    numbers = found.features[:, :2] @ torch.ones(2, 2) + 0.1 * found.labels[:, None]
    by_numbers = FeatureScore("log_me").measure(dataclasses.replace(found, labels=numbers))
    assert by_numbers == Estimate(scores.log_me(found.features, numbers).item())
    assert by_numbers != by_classes


def test_options_reach_the_function(found):
    near, far = FeatureScore("knn", {"k": 1}), FeatureScore("knn", {"k": 40})
    assert near.measure(found) == Estimate(scores.knn_accuracy(found.features, found.classes, k=1).item())
    assert near.measure(found) != far.measure(found)


def test_its_name_is_that_of_the_score_unless_another_is_given():
    assert FeatureScore("knn").name == "knn"
    assert FeatureScore("knn", name="neighbours").name == "neighbours"
    assert FeatureScore().higher_is_better
    assert "weights" in FeatureScore().needs


def test_an_unknown_score_is_refused():
    with pytest.raises(ValueError, match=r"`score` to be one of \['log_me', .*'nce'\], but got 'charm'"):
        FeatureScore("charm")


@pytest.mark.parametrize("score", ["linear_probe", "log_me", "knn", "h_score", "leep"])
def test_who_has_learned_the_targets_rule_comes_first(score, library):
    ranking = rank_sources(about(library), FeatureScore(score))
    assert ranking.best.name == "same"
    assert {line.status for line in ranking.sources} == {"ok"}


@pytest.mark.parametrize("score", SCORES)
def test_every_score_ranks_real_sources(score, library):
    target = about(library)
    found = FeatureScore(score).estimate(target, target.names)
    assert list(found) == ["other", "same", "untrained"]
    assert found == {name: FeatureScore(score).measure(target.features(name)) for name in target.names}


def test_sources_without_a_linear_head_fail_alone(library, tmp_path):
    copied = library_of(tmp_path, same=trained(0), other=trained(5))
    put(copied, "silent", trained(0), head=False)
    ranking = rank_sources(about(copied), FeatureScore("leep"))
    assert [line.status for line in ranking.sources] == ["ok", "ok", "failed"]
    assert failing(ranking.sources[-1], "the library holds none")
    assert len(rank_sources(about(copied), FeatureScore("log_me")).scores()) == 3


def test_a_target_without_classes_is_told_as_such(library):
    inputs = list(make_data().tensors[0].split(16))
    for score in ("linear_probe", "log_me", "leep"):
        with pytest.raises(LabelsError, match="one class number per sample"):
            rank_sources(about(library, inputs), FeatureScore(score))


def test_a_wrong_option_is_told_for_every_source(library):
    found = FeatureScore("knn", {"neighbours": 3}).estimate(about(library), ["same"])
    assert isinstance(found["same"], TypeError)
    assert "neighbours" in str(found["same"])
