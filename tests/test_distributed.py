"""Two real processes: one signature, one failure for all, and no waiting for a process that has died."""

import copy
import itertools
import os
import signal
import threading
import time

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from helpers import TINY, Points, cross_entropy, points
from pge_lightning.collect import Collector, collect_signature
from pge_lightning.distributed import (
    agree,
    everywhere,
    gather,
    no_collectives,
    on_rank_zero,
    rank_and_world,
    terminated,
)
from pge_lightning.probe import Probe
from sample_helpers import failure
from two_processes import in_two_processes

UNPAIRED = Probe(name="unpaired", restarts=5, steps=2, optimizer="sgd", batch_size=16, budgets=(32,), paired=False)


class Uneven(IterableDataset):
    """A stream whose share differs between ranks."""

    def __iter__(self):
        rank, _ = rank_and_world()
        return iter(points(70 if rank else 50))


def sharded(data):
    return DataLoader(data, 10, sampler=DistributedSampler(data))


def ending(work):
    """How a piece of work ends on this rank."""
    try:
        return work()
    except BaseException as error:
        return type(error).__name__, str(error)


def thrown_on_one(error):
    def work():
        if dist.get_rank() == 1:
            raise error
        return "done"

    return lambda: agree(work)


def terminated_on_one():
    """SIGTERM comes to the second process while the first works for a second, and is told in between."""
    handler = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("it is held back"))
    dist.barrier()

    def work():
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            return terminated()
        time.sleep(0.2)
        return terminated()

    try:
        return ending(lambda: agree(work)), terminated(), signal.getsignal(signal.SIGTERM) is not handler
    finally:
        signal.signal(signal.SIGTERM, handler)


def handled_inside_a_step():
    """A signal's handler that talks to the other process, as Lightning's does, in the middle of a watched step."""
    heard = []
    handler = signal.signal(signal.SIGUSR1, lambda *_: heard.append(gather(dist.get_rank())))
    with no_collectives():
        os.kill(os.getpid(), signal.SIGUSR1)
        torch.ones(1) + 1
    signal.signal(signal.SIGUSR1, handler)
    return heard


def in_a_thread(work):
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def synchronised(module):
    return nn.SyncBatchNorm.convert_sync_batchnorm(module)


def collected_in_sync():
    """What a module with synchronised batch norm gives, and whether it is still one."""
    module = synchronised(Points())
    signature = Collector(module, sharded(points()), probe=TINY, distributed=True).collect(32)
    return signature, type(module.encoder[1]).__name__


def collecting_alone():
    """The first process collects by itself; the others need not take part."""
    return (
        collect_signature(Points(), DataLoader(points(), 10), probe=TINY, budget=32) if dist.get_rank() == 0 else None
    )


def talking(module, batch):
    dist.barrier()
    return cross_entropy(module, batch)


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
        "agreed": [agree(lambda: rank), on_rank_zero(lambda: {"from": rank}), in_a_thread(lambda: agree(lambda: rank))],
        "error": ending(thrown_on_one(KeyError("gone"))),
        "keyboard": ending(thrown_on_one(KeyboardInterrupt())),
        "exit": ending(thrown_on_one(SystemExit(3))),
        "terminating": ending(thrown_on_one(SIGTERMException())),
        "terminated": terminated_on_one(),
        "handled": handled_inside_a_step(),
        "in sync": collected_in_sync(),
        "by itself": collecting_alone(),
        "talking": failure(lambda: collect_signature(Points(), DataLoader(points(), 10), probe=TINY, loss_fn=talking)),
        "ragged": failure(lambda: Collector(Points(), ragged_on_one(rank), probe=TINY, distributed=True)),
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return in_two_processes(work, tmp_path_factory.mktemp("processes"))


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


def test_own_results_stay_and_those_of_rank_zero_reach_all(results):
    assert [result["agreed"] for result in results] == [[0, {"from": 0}, 0], [1, {"from": 0}, 1]]
    assert agree(lambda: "one") == on_rank_zero(lambda: "one") == "one"


@pytest.mark.parametrize(
    ("kind", "on_zero", "on_one"),
    [
        ("error", ("PGEError", "Rank 1: KeyError: 'gone'"), ("PGEError", "Rank 1: KeyError: 'gone'")),
        ("keyboard", ("KeyboardInterrupt", "Rank 1: KeyboardInterrupt"), ("KeyboardInterrupt", "")),
        ("exit", ("SystemExit", "Rank 1: SystemExit: 3"), ("SystemExit", "3")),
        ("terminating", ("SIGTERMException", "Rank 1: SIGTERMException"), ("SIGTERMException", "")),
    ],
)
def test_an_interruption_of_one_interrupts_all_by_its_name(kind, on_zero, on_one, results):
    assert [result[kind] for result in results] == [on_zero, on_one]


def test_a_termination_is_held_back_until_all_have_met(results):
    for result in results:
        how, still, put_back = result["terminated"]
        assert how == ("SIGTERMException", "Rank 1: SIGTERMException")
        assert not still
        assert put_back


def test_handlers_of_signals_may_talk_in_the_middle_of_a_step(results):
    assert [result["handled"] for result in results] == [[[0, 1]], [[0, 1]]]


def test_synchronised_batch_norm_acts_alone_on_copies(results):
    expected = collect_signature(Points(), DataLoader(points(), 10), probe=TINY, budget=32)
    for signature, kind in (result["in sync"] for result in results):
        assert kind == "SyncBatchNorm"
        assert list(signature.units) == list(expected.units)
        assert signature.starts == expected.starts
        for name, stack in expected.units.items():
            torch.testing.assert_close(signature.units[name], stack, rtol=0, atol=1e-6)


def test_one_process_of_a_group_may_collect_alone(results):
    expected = collect_signature(Points(), DataLoader(points(), 10), probe=TINY, budget=32)
    assert results[1]["by itself"] is None
    found = results[0]["by itself"]
    assert (found.starts, found.data) == (expected.starts, expected.data)
    assert all(torch.equal(found.units[name], stack) for name, stack in expected.units.items())


def test_a_loss_that_waits_for_others_is_refused_where_each_collects_alone(results):
    for result in results:
        assert "communicates with the others through `c10d.barrier" in result["talking"]
        assert "give a `loss_fn` without it, or collect in one process before `fit`" in result["talking"]


def test_without_other_processes_nothing_is_watched():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with no_collectives():
        dist.barrier()
    assert gather("one") == ["one"]


def dying(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    gather("alive")
    how = ending(lambda: agree(lambda: os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else None))
    (folder / "how").write_text(": ".join(how))
    how = ending(lambda: agree(_interrupted))
    (folder / "interrupted").write_text(how[0])


def _interrupted():
    raise KeyboardInterrupt


def test_a_process_that_was_killed_is_not_waited_for(tmp_path):
    context = torch.multiprocessing.get_context("fork")
    processes = [context.Process(target=dying, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]
    said = (tmp_path / "how").read_text()
    assert said.startswith("PGEError: Expected all 2 processes to go on together, but rank 0 lost contact")
    assert said.endswith("See the output of the process that ended first.")
    assert (tmp_path / "interrupted").read_text() == "KeyboardInterrupt"
