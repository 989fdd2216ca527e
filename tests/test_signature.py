"""When two signatures compare, and what a refusal says."""

import dataclasses
import json

import pytest
import torch

from pge_lightning.errors import IncomparableError
from pge_lightning.probe import PROBES, Probe, Walk
from pge_lightning.signature import Signature, shared_units

PROBE = Probe(restarts=2)


def signature(**fields):
    units = {"conv.weight": torch.ones(2, 4, 3), "conv.bias": torch.ones(2, 4)}
    starts = {name: ("a0", "a1") for name in units}
    return dataclasses.replace(Signature(units, starts, PROBE, 200, 2, "data", 1000), **fields)


def test_fingerprint_is_json_and_holds_what_must_agree():
    mine = signature().fingerprint
    assert json.loads(json.dumps(mine)) == mine
    assert mine["recipe"] == PROBE.recipe
    assert mine["budget"] == 200
    assert mine["shapes"] == {"conv.weight": [4, 3], "conv.bias": [4]}
    assert mine["starts"] == {"conv.weight": ["a0", "a1"], "conv.bias": ["a0", "a1"]}
    assert mine["frozen"] == {}
    assert signature(frozen={"stem": "f0"}).fingerprint["frozen"] == {"stem": "f0"}


def test_other_data_of_another_size_compares():
    other = signature(data="other", samples=7, seconds=3.0, probe=dataclasses.replace(PROBE, name="other"))
    signature().check_comparable(other)
    other.check_comparable(signature())
    assert signature().fingerprint == other.fingerprint


def test_a_target_compares_with_sources_whose_probe_walks_targets_so():
    walked = dataclasses.replace(PROBE, target=Walk(steps=5, batch_size=8, lr=1e-3))
    source, target = signature(probe=walked), signature(probe=walked.of_target, budget=40)
    source.check_comparable(target)
    target.check_comparable(source)
    source.check_comparable(signature())  # how targets are walked is no part of a source's recipe
    for other in (signature(), signature(probe=dataclasses.replace(PROBE, target=Walk(6, 8, 1e-3)))):
        with pytest.raises(IncomparableError, match="Expected the same probe, but `steps` is"):
            other.check_comparable(target)
    starts = {**target.starts, "conv.bias": ("a0", "b1")}
    with pytest.raises(IncomparableError, match=r"unit 'conv\.bias' started from other values"):
        source.check_comparable(dataclasses.replace(target, starts=starts))


def first_restart(source):
    """What a target has that takes the first of the source's two restarts alone."""
    units = {name: stack[:1] for name, stack in source.units.items()}
    starts = {name: hashes[:1] for name, hashes in source.starts.items()}
    return dataclasses.replace(source, units=units, starts=starts, probe=source.probe.of_target, restarts=1, budget=40)


def test_a_target_may_take_fewer_restarts():
    source = signature(probe=dataclasses.replace(PROBE, target=Walk(steps=5, batch_size=8, lr=1e-3, restarts=1)))
    target = first_restart(source)
    source.check_comparable(target)
    target.check_comparable(source)
    for units in shared_units(source, target):
        assert {name: stack.shape for name, stack in units.items()} == {"conv.weight": (1, 4, 3), "conv.bias": (1, 4)}
    target = dataclasses.replace(target, starts={**target.starts, "conv.bias": ("b0",)})
    with pytest.raises(IncomparableError, match=r"unit 'conv\.bias' started from other values"):
        source.check_comparable(target)
    with pytest.raises(IncomparableError, match="`restarts` is 2 on one side and 1 on the other"):
        signature().check_comparable(dataclasses.replace(first_restart(signature()), probe=Probe(restarts=1)))


def test_without_a_ladder_budgets_need_not_agree():
    published = [signature(probe=PROBES["published"], starts={}, budget=budget) for budget in (500, 900)]
    published[0].check_comparable(published[1])
    assert published[0].fingerprint["budget"] is None


def test_frozen_parameters_count_where_both_have_them():
    mine = signature(frozen={"stem": "f0", "own": "f1"})
    mine.check_comparable(signature())
    mine.check_comparable(signature(frozen={"stem": "f0", "its": "f2"}))
    for one, other in [(mine, signature(frozen={"stem": "f9"})), (signature(frozen={"stem": "f9"}), mine)]:
        with pytest.raises(IncomparableError, match=r"equal values, but those of 'stem' differ\. Start both"):
            one.check_comparable(other)


def test_a_unit_that_is_frozen_on_one_side_only_is_named():
    units = {"conv.weight": torch.ones(2, 4, 3)}
    other = signature(units=units, starts={"conv.weight": ("a0", "a1")}, frozen={"conv.bias": "f0"})
    for one, two in [(signature(), other), (other, signature())]:
        with pytest.raises(IncomparableError, match=r"'conv\.bias' \(1 in all\) is frozen on one side only"):
            one.check_comparable(two)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"probe": Probe(restarts=2, lr=1e-3)}, r"`lr` is 0\.002 on one side and 0\.001 on the other"),
        ({"probe": Probe(restarts=2, batch_size=32)}, "`batch_size` is 64 on one side and 32"),
        ({"budget": 1000}, "equal sample budgets, but got 200 and 1000"),
        ({"units": {"conv.weight": torch.ones(2, 4, 3)}, "starts": {}}, r"\['conv\.bias'\] \(1 in all\)"),
        (
            {"units": {"conv.weight": torch.ones(2, 4, 5), "conv.bias": torch.ones(2, 4)}},
            r"unit 'conv\.weight' to have one shape, but got \[4, 3\] and \[4, 5\]",
        ),
        (
            {"starts": {"conv.weight": ("a0", "a1"), "conv.bias": ("a0", "b1")}},
            r"unit 'conv\.bias' started from other values",
        ),
    ],
)
def test_a_difference_is_named(other, message):
    with pytest.raises(IncomparableError, match=message):
        signature().check_comparable(signature(**other))
