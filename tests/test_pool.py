"""Pools: parts, fingerprints, and the draws of a restart."""

import itertools

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    TensorDataset,
)

from helpers import TINY, points
from pge_lightning.probe import PROBES, Probe
from pge_lightning.samples import sample_pool
from pge_lightning.samples.pool import draw
from sample_helpers import DATA, Numbers, held


def test_fingerprints_tell_data_apart():
    def fingerprint(data, **options):
        return sample_pool(DataLoader(data, 16, **options), TINY).fingerprint()

    one = fingerprint(points(400))
    inputs, labels = points(400).tensors
    assert one == fingerprint(points(400), shuffle=True, num_workers=1)
    assert one != fingerprint(TensorDataset(inputs, labels.flip(0)))
    assert one != fingerprint(TensorDataset(inputs + 1e-6, labels))
    assert one != fingerprint(TensorDataset(inputs[:399], labels[:399]))
    names = [fingerprint(Numbers(size)) for size in (50, 51, 50)]
    assert names[0] == names[2] != names[1]


def test_a_part_reads_its_own_samples():
    pool = sample_pool(DataLoader(DATA, 16), TINY)
    half = pool.part(range(1, 100, 2))
    quarter = half.part([0, 4, 2])
    assert (len(half), len(quarter)) == (50, 3)
    assert held(quarter) == [1, 9, 5]
    assert half.fingerprint() != pool.fingerprint()


@pytest.mark.parametrize("probe", [TINY, Probe(restarts=2, steps=11, batch_size=16, budgets=(70,))])
def test_draws_have_the_right_sizes_and_no_repeats_within_a_pass(probe):
    budget = probe.budgets[-1]
    passes = budget // probe.batch_size
    batches = draw(90, budget, probe, restart=0)
    assert [len(batch) for batch in batches] == [probe.batch_size] * probe.steps
    for at in range(0, probe.steps, passes):
        seen = [index for batch in batches[at : at + passes] for index in batch]
        assert len(set(seen)) == len(seen)
    everything = {index for batch in batches for index in batch}
    assert len(everything) <= budget
    assert everything <= set(range(90))


def test_draws_are_fresh_per_restart_and_repeatable():
    torch.manual_seed(0)
    draws = [draw(1000, 64, TINY, restart) for restart in range(3)]
    torch.manual_seed(1)
    assert draws == [draw(1000, 64, TINY, restart) for restart in range(3)]
    chosen = [{index for batch in batches for index in batch} for batches in draws]
    assert [len(each) for each in chosen] == [64] * 3
    assert all(len(one & two) < 20 for one, two in itertools.combinations(chosen, 2))
    assert draw(1000, 64, Probe(**{**TINY.recipe, "seed": 1}, budgets=(64,)), 0) != draws[0]


def test_a_probe_without_restarts_makes_a_single_pass():
    probe = PROBES["published"]
    batches = [draw(640, 640, probe, restart) for restart in range(10)]
    assert [[len(batch) for batch in each] for each in batches] == [[64]] * 10
    assert sorted(index for each in batches for batch in each for index in batch) == list(range(640))


class Pair:
    """A batch type that no library knows."""

    def __init__(self, items):
        self.inputs, self.labels = (torch.stack(column) for column in zip(*items, strict=True))


def test_fingerprints_of_batches_of_any_type_tell_their_content():
    def fingerprint(shift):
        inputs, labels = points(40).tensors
        loader = DataLoader(TensorDataset(inputs + shift, labels), 8, collate_fn=Pair)
        return sample_pool(loader, TINY).fingerprint()

    one, again, other = (fingerprint(shift) for shift in (0, 0, 1))
    assert one == again != other


def test_fingerprints_of_plain_batches_stay_what_they_were():
    assert sample_pool(DataLoader(DATA, 16), TINY).fingerprint() == "023e67a07d35d09f"
