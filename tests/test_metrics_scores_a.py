"""Metrics of features for classes: equal to their functions, however they are fed."""

import copy
import pickle

import pytest
import torch
from torchmetrics import MetricCollection

from pge_lightning.functional import gaussian_bhattacharyya, h_score, log_me, parc, regularized_h_score, trans_rate
from pge_lightning.metrics import PARC, GaussianBhattacharyya, HScore, LogME, RegularizedHScore, TransRate
from score_samples import blobs
from two_processes import in_two_processes

FEATURES, TARGET = blobs(per_class=16, spread=1.5)
BATCHES = torch.arange(len(TARGET)).split([20, 1, 27])

# Name: the metric, options other than the default, its function.
METRICS = {
    "h_score": (HScore, {}, h_score),
    "regularized_h_score": (RegularizedHScore, {}, regularized_h_score),
    "log_me": (LogME, {"iterations": 2, "tolerance": 0.5}, log_me),
    "trans_rate": (TransRate, {"distortion": 0.1}, trans_rate),
    "gaussian_bhattacharyya": (GaussianBhattacharyya, {"covariance": "diagonal"}, gaussian_bhattacharyya),
    "parc": (PARC, {"ties": "exact"}, parc),
}
everywhere = pytest.mark.parametrize("name", METRICS)


def filled(name, **options):
    metric = METRICS[name][0](**options)
    for batch in BATCHES:
        metric.update(FEATURES[batch], TARGET[batch])
    return metric


@everywhere
def test_equals_the_function_on_all_samples(name):
    assert torch.equal(filled(name).compute(), METRICS[name][2](FEATURES, TARGET))


@pytest.mark.parametrize("name", [name for name, (_, options, _) in METRICS.items() if options])
def test_options_reach_the_function(name):
    _, options, function = METRICS[name]
    value = filled(name, **options).compute()
    assert torch.equal(value, function(FEATURES, TARGET, **options))
    assert not torch.equal(value, function(FEATURES, TARGET))


@everywhere
def test_says_what_it_is(name):
    metric = METRICS[name][0]()
    assert (metric.higher_is_better, metric.is_differentiable, metric.full_state_update) == (True, False, False)


@everywhere
def test_survives_copies_and_forgets_on_reset(name):
    metric = filled(name)
    value = metric.compute()
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert torch.equal(twin.compute(), value)
    metric.reset()
    with (
        pytest.raises(ValueError, match=f"before `compute` of {type(metric).__name__}, but got none"),
        pytest.warns(UserWarning, match="was called before the ``update`` method"),
    ):
        metric.compute()


def test_forward_gives_the_score_of_its_batch_and_keeps_all():
    metric = HScore()
    assert torch.equal(metric(FEATURES[:24], TARGET[:24]), h_score(FEATURES[:24], TARGET[:24]))
    metric(FEATURES[24:], TARGET[24:])
    assert torch.equal(metric.compute(), h_score(FEATURES, TARGET))


def test_real_targets_of_several_columns_are_kept_in_their_dtype():
    metric = LogME()
    for batch in BATCHES:
        metric.update(FEATURES[batch].bfloat16(), FEATURES[batch, :2].sin())
    assert torch.equal(metric.compute(), log_me(FEATURES.bfloat16(), FEATURES[:, :2].sin()))


def test_as_many_targets_as_samples_are_asked_for_at_once():
    with pytest.raises(ValueError, match="got 48 samples and 47 targets"):
        TransRate().update(FEATURES, TARGET[1:])


def test_all_of_them_go_into_a_collection_and_share_their_samples():
    collection = MetricCollection({name: kind() for name, (kind, *_) in METRICS.items()})
    for batch in BATCHES:
        collection.update(features=FEATURES[batch], target=TARGET[batch])
    values = collection.compute()
    assert all(torch.equal(values[name], function(FEATURES, TARGET)) for name, (*_, function) in METRICS.items())
    assert len(collection.compute_groups) == 1


def of_one_process(rank):
    metrics = {name: kind() for name, (kind, *_) in METRICS.items()}
    part = slice(0, 30) if rank == 0 else slice(30, None)
    for metric in metrics.values():
        metric.update(FEATURES[part], TARGET[part])
    return {name: metric.compute() for name, metric in metrics.items()}


def test_two_processes_with_unequally_many_samples_give_what_one_gives(tmp_path):
    for values in in_two_processes(of_one_process, tmp_path):
        assert all(torch.equal(value, METRICS[name][2](FEATURES, TARGET)) for name, value in values.items())


def test_plots():
    pytest.importorskip("matplotlib").use("Agg")
    figure, axes = filled("h_score").plot()
    assert axes in figure.axes
