"""Two real processes: one signature, and one failure for all."""

import copy
import itertools
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from helpers import TINY, Points, cross_entropy, points
from pge_lightning.collect import Collector, collect_signature
from pge_lightning.distributed import everywhere, gather, rank_and_world
from pge_lightning.errors import PGEError
from pge_lightning.probe import Probe

UNPAIRED = Probe(name="unpaired", restarts=5, steps=2, optimizer="sgd", batch_size=16, budgets=(32,), paired=False)


class Uneven(IterableDataset):
    """A stream whose share differs between ranks."""

    def __iter__(self):
        rank, _ = rank_and_world()
        return iter(points(70 if rank else 50))


def sharded(data):
    return DataLoader(data, 10, sampler=DistributedSampler(data))


def failure(work):
    try:
        work()
    except PGEError as error:
        return str(error)
    return ""


def bad_loss_on_one(module, batch):
    loss = cross_entropy(module, batch)
    return loss * float("nan") if dist.get_rank() == 1 else loss


def ragged_on_one(rank):
    return [torch.ones(40, 6), torch.ones(40, 6 + rank)]


def collected(probe):
    return Collector(Points(), sharded(points()), probe=probe, distributed=True).collect(32)


def work(rank):
    """What every rank does; each piece must end on both."""
    uneven = Collector(Points(), DataLoader(Uneven(), 10), probe=TINY, distributed=True)
    bad = Collector(Points(), sharded(points()), probe=TINY, loss_fn=bad_loss_on_one, distributed=True)
    return {
        "rank": rank_and_world(),
        "gathered": gather({"from": rank}),
        "everywhere": everywhere(lambda: rank * 10),
        "alone": everywhere(lambda: rank * 10, distributed=False),
        "paired": collected(TINY),
        "unpaired": collected(UNPAIRED),
        "fits": Collector(Points(), sharded(points()), probe=TINY, distributed=True).fits(collected(TINY), 32),
        "uneven": (len(uneven.pool), uneven.budgets, uneven.collect(32)),
        "loss": failure(lambda: bad.collect(32)),
        "ragged": failure(lambda: Collector(Points(), ragged_on_one(rank), probe=TINY, distributed=True)),
    }


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(work(rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_ranks_are_told_apart(results):
    assert [result["rank"] for result in results] == [(0, 2), (1, 2)]
    assert rank_and_world() == (0, 1)


def test_values_reach_all_in_the_order_of_ranks(results):
    assert all(result["gathered"] == [{"from": 0}, {"from": 1}] for result in results)
    assert all(result["everywhere"] == [0, 10] for result in results)
    assert [result["alone"] for result in results] == [[0], [10]]
    assert gather("one") == ["one"]
    assert everywhere(lambda: "one") == ["one"]


@pytest.mark.parametrize(("kind", "probe"), [("paired", TINY), ("unpaired", UNPAIRED)])
def test_two_processes_collect_what_one_does(results, kind, probe):
    expected = collect_signature(Points(), DataLoader(points(), 10), probe=probe, budget=32)
    for signature in (result[kind] for result in results):
        assert (signature.starts, signature.data, signature.samples) == (expected.starts, expected.data, 100)
        assert list(signature.units) == list(expected.units)
        for name, stack in expected.units.items():
            torch.testing.assert_close(signature.units[name], stack, rtol=0, atol=1e-6)
    for one, two in itertools.pairwise(result[kind] for result in results):
        assert all(torch.equal(one.units[name], two.units[name]) for name in one.units)
    assert all(result["fits"] for result in results)


def test_streams_of_uneven_length_agree_on_the_shorter(results):
    sizes = [result["uneven"][:2] for result in results]
    assert sizes == [(50, [32])] * 2
    one, two = (copy.copy(result["uneven"][2]) for result in results)
    assert all(torch.equal(one.units[name], two.units[name]) for name in one.units)
    assert (one.starts, one.data, one.samples) == (two.starts, two.data, two.samples)


def test_a_failure_on_one_rank_is_raised_on_all(results):
    for result in results:
        assert result["loss"].startswith("Rank 1: In restart 1: Expected a finite loss at every step, but got")
        assert result["ragged"].startswith("Rank 1: Expected batches of tensors")


def test_a_failure_alone_stays_what_it_is():
    with pytest.raises(ZeroDivisionError):
        everywhere(lambda: 1 / 0)
