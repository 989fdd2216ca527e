"""The noise floor: two disjoint halves of one data set, at equal budgets."""

import dataclasses
import math

import pytest
import torch

from pge_lightning.collect import Collector
from pge_lightning.errors import PGEError
from pge_lightning.gap import KINDS, compare
from pge_lightning.noise_floor import collect_halves, noise_floor
from pge_lightning.samples.pool import draw
from trainer_helpers import LADDER, TINY, Net, make_loader, plain_loss

SEED = 1


def collector_of(samples, probe=LADDER):
    return Collector(Net(), make_loader(SEED, samples), probe=probe, loss_fn=plain_loss, encoder="encoder")


@pytest.mark.parametrize(("samples", "budget"), [(128, 64), (100, 32), (64, 32), (30, 15)])
def test_the_noise_floor_compares_two_halves_at_the_largest_rung_they_fill(samples, budget):
    collector = collector_of(samples)
    floor = noise_floor(collector)
    assert floor.budget == budget
    assert 0 < floor.value < 2
    assert math.isfinite(floor.standard_error)
    assert floor == noise_floor(collector_of(samples))
    assert len(collector.pool) == samples


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_gap_between_the_halves_by_the_same_formula(kind):
    collector = collector_of(64)
    first, second = collect_halves(collector)
    assert (first.budget, second.budget) == (32, 32)
    assert not all(torch.equal(first.units[name], second.units[name]) for name in first.units)
    assert noise_floor(collector, kind) == compare(first, second, kind)


def test_without_rungs_a_half_is_taken_whole():
    probe = dataclasses.replace(LADDER, budgets=())
    assert [half.samples for half in collect_halves(collector_of(50, probe))] == [25, 25]


def test_the_halves_are_disjoint_and_of_equal_size():
    collector = collector_of(65)
    parts, part = [], collector.part

    def noting(indices):
        parts.append(set(indices))
        return part(indices)

    collector.part = noting
    noise_floor(collector, "unit")
    assert [len(indices) for indices in parts] == [32, 32]
    assert not parts[0] & parts[1]
    assert {i for batch in draw(32, 32, LADDER, 0) for i in batch} <= set(range(32))


def test_a_noise_floor_needs_two_halves_of_a_batch():
    with pytest.raises(PGEError, match="two halves of at least 8 samples each, but got 15"):
        noise_floor(collector_of(15, dataclasses.replace(TINY, budgets=(8,))))
