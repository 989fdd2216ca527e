"""Metrics of predictions, clusters, discriminants and simple classifiers: equal to their functions however fed."""

import copy
import pickle

import pytest
import torch
from torchmetrics import MetricCollection

from pge_lightning.functional.scores import knn_accuracy, leep, linear_probe, nce, nleep, pactran, sfda
from pge_lightning.metrics import LEEP, NCE, NLEEP, SFDA, KNNAccuracy, LinearProbe, PACTran
from score_samples import blobs, head_of_seven
from two_processes import in_two_processes

FEATURES, TARGET = blobs(per_class=16, spread=1.5)
PROBABILITIES = head_of_seven(FEATURES)

# Name: the metric, its inputs, and what its function makes of all of them.
METRICS = {
    "leep": (LEEP, {}, PROBABILITIES, leep),
    "nce": (NCE, {}, PROBABILITIES.argmax(dim=1), nce),
    "nleep": (NLEEP, {"components": 4, "energy": 0.9, "seed": 1}, FEATURES, nleep),
    "sfda": (SFDA, {}, FEATURES, sfda),
    "pactran": (PACTran, {"strength": 0.5, "variance": 2.0}, FEATURES, pactran),
    "knn": (KNNAccuracy, {"k": 3}, FEATURES, knn_accuracy),
    "linear_probe": (
        LinearProbe,
        {"folds": 4, "repeats": 2, "classifier": "logistic", "strength": 1.0, "measure": "confidence", "seed": 3},
        FEATURES,
        linear_probe,
    ),
}
everywhere = pytest.mark.parametrize("name", METRICS)


def filled(name):
    """The metric after updates of unequal size."""
    kind, options, inputs, _ = METRICS[name]
    metric = kind(**options)
    for part in torch.arange(len(TARGET)).split([20, 1, 27]):
        metric.update(inputs[part], TARGET[part])
    return metric


def expected(name):
    _, options, inputs, function = METRICS[name]
    return function(inputs, TARGET, **options)


@everywhere
def test_equals_the_function_on_all_samples(name):
    assert torch.equal(filled(name).compute(), expected(name))


@everywhere
def test_options_reach_the_function(name):
    kind, options, inputs, function = METRICS[name]
    if options:
        metric = kind()
        metric.update(inputs, TARGET)
        assert torch.equal(metric.compute(), function(inputs, TARGET))
        assert not torch.equal(metric.compute(), expected(name))


@everywhere
def test_says_what_it_is(name):
    metric = filled(name)
    assert metric.higher_is_better is True
    assert metric.is_differentiable is False
    assert metric.full_state_update is False


@everywhere
def test_survives_copies_and_forgets_on_reset(name):
    metric = filled(name)
    for twin in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)), metric.clone()):
        assert torch.equal(twin.compute(), expected(name))
    metric.reset()
    with (
        pytest.raises(ValueError, match=f"before `compute` of {type(metric).__name__}"),
        pytest.warns(UserWarning, match="was called before the ``update`` method"),
    ):
        metric.compute()


def test_metrics_of_the_same_inputs_go_into_a_collection():
    names = ["nleep", "sfda", "pactran", "knn", "linear_probe"]
    collection = MetricCollection({name: METRICS[name][0](**METRICS[name][1]) for name in names})
    collection.update(FEATURES[:30], TARGET[:30])
    collection.update(FEATURES[30:], TARGET[30:])
    values = collection.compute()
    assert all(torch.equal(values[name], expected(name)) for name in names)


def shared(rank):
    values = {}
    for name, (kind, options, inputs, _) in METRICS.items():
        metric = kind(**options)
        half = slice(0, 24) if rank == 0 else slice(24, None)
        metric.update(inputs[half], TARGET[half])
        values[name] = metric.compute()
    return values


def test_two_processes_give_what_one_gives(tmp_path):
    for values in in_two_processes(shared, tmp_path):
        assert all(torch.equal(value, expected(name)) for name, value in values.items())


@everywhere
def test_plots(name):
    pytest.importorskip("matplotlib").use("Agg")
    figure, axes = filled(name).plot()
    assert axes in figure.axes
