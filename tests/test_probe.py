"""The recipe: shipped ones, their checks, and what belongs to it."""

import dataclasses
import json

import pytest

from pge_lightning.probe import PROBES, Probe


def test_shipped_probes_are_the_documented_ones():
    assert {name: probe.name for name, probe in PROBES.items()} == {name: name for name in PROBES}
    default, fast, published = (PROBES[name] for name in ("default", "fast", "published"))
    assert (default.restarts, default.steps, default.optimizer, default.lr) == (8, 60, "adam", 2e-3)
    assert (default.batch_size, default.budgets) == (64, (200, 1000, 5000))
    assert (fast.restarts, fast.steps, fast.budgets) == (2, 30, (200,))
    assert PROBES["label_free"] == dataclasses.replace(default, name="label_free", steps=120, pretext="auto")
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
    }
    assert Probe(statistic="fisher").recipe == {**Probe().recipe, "statistic": "fisher"}
    assert Probe(pretext="words").recipe == {**Probe().recipe, "pretext": "words"}


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
