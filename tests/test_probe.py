"""The recipe: shipped ones, their checks, and what belongs to it."""

import dataclasses
import json

import pytest

from pge_lightning.probe import PROBES, Probe, Walk


def test_shipped_probes_are_the_documented_ones():
    assert {name: probe.name for name, probe in PROBES.items()} == {name: name for name in PROBES}
    default, fast, published = (PROBES[name] for name in ("default", "fast", "published"))
    assert (default.restarts, default.steps, default.optimizer, default.lr) == (20, 120, "adam", 2e-3)
    assert (default.batch_size, default.budgets) == (64, (200, 1000))
    assert default.target == Walk(steps=30, batch_size=32, lr=2e-3)
    assert (fast.restarts, fast.steps, fast.budgets) == (2, 30, (200,))
    label_free = PROBES["label_free"]
    assert (label_free.restarts, label_free.steps, label_free.budgets, label_free.pretext) == (
        8,
        120,
        (200, 1000),
        "auto",
    )
    assert label_free.target == Walk(steps=30, batch_size=32, lr=2e-3)
    assert (published.restarts, published.steps, published.optimizer, published.paired) == (None, 1, "sgd", False)


def test_of_takes_a_probe_or_a_name():
    probe = Probe(steps=7)
    assert Probe.of(probe) is probe
    assert Probe.of("fast") is PROBES["fast"]
    with pytest.raises(ValueError, match=r"one of \['default', 'fast', .*\], but got 'slow'"):
        Probe.of("slow")


def test_recipe_is_json_without_name_and_ladder():
    probe = Probe(name="mine", budgets=(5000, 200))
    assert probe.budgets == (200, 5000)
    assert json.loads(json.dumps(probe.recipe)) == Probe().recipe
    assert set(Probe().recipe) == {field.name for field in dataclasses.fields(Probe)} - {
        "name",
        "budgets",
        "statistic",
        "pretext",
        "target",
    }
    assert Probe(statistic="fisher").recipe == {**Probe().recipe, "statistic": "fisher"}
    assert Probe(pretext="words").recipe == {**Probe().recipe, "pretext": "words"}


def test_a_target_is_walked_as_the_sources_or_in_a_way_of_its_own():
    probe = Probe(budgets=(200, 1000))
    assert probe.of_target is probe
    walked = dataclasses.replace(probe, target={"steps": 5, "batch_size": 8, "lr": 1e-3})  # as a file holds it
    assert walked.target == Walk(steps=5, batch_size=8, lr=1e-3)
    assert walked.recipe == probe.recipe
    assert walked.of_target == dataclasses.replace(probe, steps=5, batch_size=8, lr=1e-3)
    assert walked.of_target.of_target == walked.of_target
    fewer = dataclasses.replace(walked, target=dataclasses.replace(walked.target, restarts=2))
    assert fewer.recipe == walked.recipe
    assert fewer.of_target == dataclasses.replace(walked.of_target, restarts=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "`steps` to be at least 1, but got 0"),
        ({"batch_size": -1}, "`batch_size` to be at least 1, but got -1"),
        ({"lr": float("nan")}, "`lr` to be positive, but got nan"),
    ],
)
def test_a_walk_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Walk(**{"steps": 1, "batch_size": 1, "lr": 1.0, **fields})


@pytest.mark.parametrize("restarts", [0, 9])
def test_a_target_takes_some_of_the_sources_restarts(restarts):
    with pytest.raises(ValueError, match=f"to be some of the sources' 8, but got {restarts}"):
        Probe(restarts=8, target=Walk(steps=5, batch_size=8, lr=1e-3, restarts=restarts))


@pytest.mark.parametrize("fields", [{"paired": False}, {"optimizer": "sgd"}, {"statistic": "fisher"}])
def test_only_mean_updates_of_paired_restarts_under_adam_compare_across_walks(fields):
    with pytest.raises(ValueError, match="`target` to be None, but got a walk: only mean updates of paired restarts"):
        Probe(target=Walk(steps=5, batch_size=8, lr=1e-3), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "`name` of letters"),
        ({"name": "a/b"}, "`name` of letters"),
        ({"name": ".hidden"}, "`name` of letters"),
        ({"restarts": None}, "Set `paired=False`"),
        ({"restarts": 0}, "`restarts` to be at least 1, but got 0"),
        ({"steps": 0}, "`steps` to be at least 1, but got 0"),
        ({"batch_size": -1}, "`batch_size` to be at least 1, but got -1"),
        ({"optimizer": "lion"}, "'adam' or 'sgd', but got 'lion'"),
        ({"statistic": "hessian"}, "'gradient' or 'fisher', but got 'hessian'"),
        ({"pretext": "masked"}, r"one of \('auto', 'reduced', 'projection', 'words'\), but got 'masked'"),
        ({"lr": 0.0}, "`lr` to be positive, but got 0.0"),
        ({"lr": float("nan")}, "`lr` to be positive, but got nan"),
        ({"budgets": (1000, 50)}, "fill a batch of 64, but got 50"),
    ],
)
def test_a_field_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Probe(**fields)
