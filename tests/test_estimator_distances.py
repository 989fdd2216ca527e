"""Distances between data sets as estimators, on a library that real Trainer runs filled."""

import math

import pytest
import torch

from pge_lightning.errors import IncomparableError, PGEError
from pge_lightning.estimators import Estimator, InputStatistics, OTDDEstimator, Target, Task2VecEstimator
from pge_lightning.functional.distances import gaussian_wasserstein, otdd, task2vec_distances
from pge_lightning.library import Library
from pge_lightning.probe import Probe
from trainer_helpers import TINY, Net, callback, fit, make_data, make_loader

FISHER = Probe("fisher", restarts=2, steps=60, lr=2e-2, batch_size=8, budgets=(64,), statistic="fisher")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sources of the target's own rule and of a foreign one, one without a summary, one of other starts."""
    folder = tmp_path_factory.mktemp("library")
    for name, seed, options in (
        ("near", 0, {"summary": 128, "probe": FISHER}),
        ("far", 5, {"summary": 128, "probe": FISHER}),
        ("bare", 0, {"probe": TINY}),
    ):
        torch.manual_seed(0)
        fit(Net(), make_loader(seed, 128), callbacks=[callback(folder, name, **options)])
    return folder


def target(folder, seed=0):
    torch.manual_seed(0)
    return Target(Net(), make_loader(seed, 100), Library(folder), encoder="encoder", cache=False)


def test_task2vec_gives_one_replicate_per_restart_and_names_what_is_missing(folder):
    goal, estimator = target(folder), Task2VecEstimator(FISHER)
    found = estimator.estimate(goal, ["near", "far", "bare"])
    own = goal.signature(FISHER)
    for name in ("near", "far"):
        source = goal.sources[name]
        signature = source.load_signature(source.find(FISHER.recipe, 64))
        expected = task2vec_distances(signature.units, own.units)
        assert found[name].replicates == pytest.approx(expected.tolist())
        assert found[name].value == pytest.approx(expected.mean().item())
        assert found[name].standard_error > 0
    assert found["near"].value < found["far"].value
    assert isinstance(found["bare"], PGEError)
    assert "Expected a signature of probe 'fisher' at 64 samples" in str(found["bare"])
    assert not estimator.higher_is_better


def test_task2vec_without_the_trivial_task_and_with_a_probe_of_gradients(folder):
    found = Task2VecEstimator(FISHER, asymmetric=False).estimate(target(folder), ["near"])
    assert 0 <= found["near"].value <= 1
    with pytest.raises(ValueError, match="statistic='fisher'"):
        Task2VecEstimator("default")


def test_otdd_and_input_statistics_compare_stored_summaries_with_the_targets(folder):
    goal = target(folder)
    inputs, labels, _ = make_data(0, 100).tensors
    stored = goal.sources["far"].load_extra("summary")
    by_labels, by_inputs = (kind().estimate(goal, ["near", "far", "bare"]) for kind in (OTDDEstimator, InputStatistics))
    expected = otdd(stored["inputs"], stored["labels"], inputs, labels).item()
    assert by_labels["far"].value == pytest.approx(expected, rel=1e-6)
    assert by_inputs["far"].value == pytest.approx(gaussian_wasserstein(stored["inputs"], inputs).item(), rel=1e-6)
    assert by_labels["near"].value < by_labels["far"].value
    for found in (by_labels, by_inputs):
        assert math.isnan(found["near"].standard_error)
        assert "Expected a summary of the samples of source 'bare'" in str(found["bare"])
    few = OTDDEstimator(samples=10).estimate(goal, ["far"])
    assert few["far"].value != by_labels["far"].value


def test_a_source_that_could_not_be_opened_keeps_its_reason(folder, tmp_path):
    goal = target(folder)
    reason = IncomparableError("no source")
    goal.sources["lost"] = reason
    for estimator in (Task2VecEstimator(FISHER), OTDDEstimator(), InputStatistics()):
        assert isinstance(estimator, Estimator)
        assert estimator.estimate(goal, ["lost"]) == {"lost": reason}


def test_data_without_labels_have_input_statistics_alone(folder):
    torch.manual_seed(0)
    batches = [(inputs,) for inputs in make_data(0, 96).tensors[0].split(16)]

    def loss(module, batch):
        return module(batch[0]).square().mean()

    goal = Target(Net(), batches, Library(folder), encoder="encoder", loss_fn=loss, cache=False)
    assert InputStatistics().estimate(goal, ["near"])["near"].value >= 0
    assert "Expected a summary with class numbers" in str(OTDDEstimator().estimate(goal, ["near"])["near"])
