"""Trivial baselines: facts of the library, and chance."""

import dataclasses
from collections import Counter

import pytest
from scipy import stats

from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.estimators import Estimate, FactEstimator, RandomOrder, Target
from pge_lightning.estimators.baselines import FACTS
from pge_lightning.library import Library
from pge_lightning.rank import rank_sources
from pge_lightning.source import SourceFacts
from trainer_helpers import Net, failing, make_loader

KNOWN = {"small": (10, 100, 0.9), "middle": (2, 500, 0.6), "large": (5, 3000, 0.7)}


@pytest.fixture
def library(tmp_path):
    """Sources that hold facts, and next to no weights."""
    library = Library(tmp_path)
    for name, (classes, samples, value) in KNOWN.items():
        facts = SourceFacts("encoder", classes, samples, "val_acc", value, 1.0, 0.1, "2025-01-01T00:00:00+00:00")
        library.register(name, {"encoder.0.bias": Net().encoder[0].bias.detach()}, facts, [])
    return library


def about(library, **options):
    return Target(Net(), make_loader(), library, **options)


@pytest.mark.parametrize("place", range(3))
def test_a_fact_is_the_estimate(place, library):
    fact = ["source_classes", "source_size", "source_metric"][place]
    found = FactEstimator(fact).estimate(about(library), list(KNOWN))
    assert found == {name: Estimate(float(values[place])) for name, values in KNOWN.items()}
    ranking = rank_sources(about(library), FactEstimator(fact))
    assert [line.name for line in ranking.sources] == sorted(KNOWN, key=lambda name: -KNOWN[name][place])
    assert ranking.estimator == fact


def test_equal_facts_are_ties(library):
    source = library.open("small")
    library.register("twin", source.load_weights(), source.facts, [])
    assert rank_sources(about(library), FactEstimator("source_metric")).ties == ["twin"]


@pytest.mark.parametrize(("fact", "field"), [(fact, field) for fact, field in FACTS.items() if field != "samples"])
def test_a_source_that_does_not_know_the_fact_fails_alone(fact, field, library):
    sound = rank_sources(about(library), FactEstimator(fact))
    source = library.open("small")
    facts = dataclasses.replace(source.facts, **{field: None})
    library.register("silent", source.load_weights(), facts, [])
    ranking = rank_sources(about(library), FactEstimator(fact))
    assert ranking.sources[:-1] == sound.sources
    assert failing(ranking.sources[-1], f"source 'silent' to know its {field}, but it does not")


def test_a_source_that_cannot_be_opened_has_no_facts(library):
    target = about(library)
    target.sources["small"] = ArtifactError("damaged")
    found = FactEstimator().estimate(target, list(KNOWN))
    assert isinstance(found["small"], PGEError)
    assert found["large"] == Estimate(3000.0)


def test_an_unknown_fact_is_refused():
    with pytest.raises(ValueError, match=r"one of \['source_size', 'source_classes', 'source_metric'\].*'beauty'"):
        FactEstimator("beauty")


def test_facts_cost_nothing_and_say_so():
    assert FactEstimator().needs == {"facts"}
    assert RandomOrder().needs == frozenset()


def test_a_random_order_is_the_same_whenever_it_is_drawn(library):
    first = RandomOrder().estimate(about(library, name="usps"), list(KNOWN))
    assert RandomOrder().estimate(about(library, name="usps"), list(KNOWN)) == first
    assert RandomOrder().estimate(about(library, name="usps"), ["large"]) == {"large": first["large"]}
    assert RandomOrder(1).estimate(about(library, name="usps"), list(KNOWN)) != first
    assert RandomOrder().estimate(about(library, name="mnist"), list(KNOWN)) != first
    assert RandomOrder().estimate(about(library), list(KNOWN)) != first


def test_every_source_stands_on_top_as_often_as_any_other(library):
    target, tops, values = about(library), Counter(), []
    for seed in range(300):
        found = RandomOrder(seed).estimate(target, list(KNOWN))
        tops[max(found, key=lambda name: found[name].value)] += 1
        values += [estimate.value for estimate in found.values()]
    assert stats.chisquare(list(tops.values())).pvalue > 0.01
    assert stats.kstest(values, "uniform").pvalue > 0.01
    assert all(0 <= value < 1 for value in values)
