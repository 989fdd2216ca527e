"""Random access to what training would see, without moving it."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
)

from helpers import TINY
from pge_lightning.errors import PGEError
from pge_lightning.samples import sample_pool
from sample_helpers import DATA, WITHOUT_LADDER, failure, held
from two_processes import in_two_processes


class Stream(IterableDataset):
    def __init__(self, size=100):
        self.size, self.passes = size, 0

    def __iter__(self):
        self.passes += 1
        yield from (torch.tensor(float(number)) for number in range(self.size))


@pytest.mark.parametrize(("limit", "size"), [(1, 16), (3, 48), (6, 96), (7, 100), (20, 100), (None, 100)])
def test_a_limit_counts_batches(limit, size):
    assert held(sample_pool(DataLoader(DATA, 16), TINY, limit)) == list(range(size))
    assert len(sample_pool(DataLoader(DATA, 16, shuffle=True), TINY, limit)) == size
    assert len(sample_pool(DataLoader(Stream(), 16), WITHOUT_LADDER, limit)) == size


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_are_read_once_up_to_the_largest_rung(workers):
    class Sharded(Stream):
        def __iter__(self):
            info = torch.utils.data.get_worker_info()
            first, every = (info.id, info.num_workers) if info else (0, 1)
            return itertools.islice(super().__iter__(), first, None, every)

    stream = Sharded(1000)
    pool = sample_pool(DataLoader(stream, 10, num_workers=workers), TINY)
    assert held(pool) == list(range(64))
    assert stream.passes == 0
    assert len(sample_pool(DataLoader(stream, 10), WITHOUT_LADDER)) == 1000


@pytest.mark.parametrize(
    ("data", "size"),
    [
        ([], 0),
        (iter(()), 0),
        ([torch.ones(15)], 15),
        (DataLoader(TensorDataset(torch.ones(15)), 4), 15),
        (DataLoader(TensorDataset(torch.ones(0)), 4), 0),
        (DataLoader(Stream(3), 4), 3),
        (DataLoader(DATA, 16, sampler=SubsetRandomSampler([])), 0),
    ],
)
def test_less_than_a_batch_is_an_error(data, size):
    with pytest.raises(PGEError, match=f"at least one batch of 16 samples, but the training data holds {size}"):
        sample_pool(data, TINY)


def test_reading_moves_neither_sampler_nor_generator_nor_global_state():
    class Counting(RandomSampler):
        epoch = 0

        def __iter__(self):
            self.epoch += 1
            yield from super().__iter__()

    def loader():
        return DataLoader(DATA, 10, sampler=Counting(DATA, generator=torch.Generator().manual_seed(4)))

    mine, twin = loader(), loader()
    torch.manual_seed(2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    sample_pool(mine, TINY).fingerprint()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert mine.sampler.epoch == 0
    assert all(torch.equal(one[0], two[0]) for one, two in zip(mine, twin, strict=True))


class Share(IterableDataset):
    """What one of two processes reads: rank 1 may have less, nothing, or something that has no copy."""

    def __init__(self, sizes, rank, held=None):
        self.first, self.size, self.held = 100 * rank, sizes[rank], held

    def __iter__(self):
        return (torch.tensor(float(self.first + number)) for number in range(self.size))


def shared_work(rank):
    """What both processes do; each piece must end on both."""

    def pool(data):
        return sample_pool(data, TINY, distributed=True)

    def stream(*sizes, held=None):
        return DataLoader(Share(sizes, rank, held), 8)

    numbered = DataLoader(DATA, 8, sampler=DistributedSampler(DATA, num_replicas=2, rank=rank))
    several = pool({"numbered": numbered, "stream": stream(40, 20)})
    return {
        "stream": pool(stream(40, 20)).batch([0, 19]).tolist(),
        "several": (len(several), [int(x) for x in several.batch([99])["numbered"][0]]),
        "its stream": several.batch([0, 19, 20])["stream"].tolist(),
        "nothing on one": failure(lambda: pool(stream(40, 0))),
        "nothing of one loader": failure(lambda: pool([stream(40, 40), stream(40, 0)])),
        "no copy on one": failure(lambda: pool([stream(40, 40), stream(40, 40, held=(n for n in [1]) if rank else 1)])),
        "batches of one": len(pool([torch.ones(20 + 20 * rank)])),
    }


def test_two_processes_agree_on_their_shares_and_none_waits_in_vain(tmp_path):
    results = in_two_processes(shared_work, tmp_path)
    assert [result["stream"] for result in results] == [[0, 19], [100, 119]]
    assert [result["several"] for result in results] == [(100, [99])] * 2
    assert [result["its stream"] for result in results] == [[0, 19, 0], [100, 119, 100]]
    assert [result["batches of one"] for result in results] == [20, 20]
    for result in results:
        assert "at least one batch of 16 samples, but the training data holds 0" in result["nothing on one"]
        assert "each of 2 training loaders, but number 1 has none" in result["nothing of one loader"]
        assert result["no copy on one"].startswith("Rank 1: Expected a stream that can be copied")
