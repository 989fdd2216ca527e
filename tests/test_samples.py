"""Reading what a loader would read, without moving it; and drawing the batches of a restart."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from helpers import TINY, points
from pge_lightning.errors import PGEError
from pge_lightning.pool import draw
from pge_lightning.probe import PROBES, Probe
from pge_lightning.samples import sample_pool

DATA = TensorDataset(torch.arange(100.0), torch.arange(100) % 3)
WITHOUT_LADDER = Probe(name="all", restarts=2, steps=2, batch_size=8, budgets=())


def held(pool):
    """The samples' first leaf, by which the tests tell them apart."""
    batch = pool.batch(range(len(pool)))
    return [int(value) for value in (batch if isinstance(batch, Tensor) else batch[0])]


class Numbers(Dataset):
    """Any map-style data set."""

    def __init__(self, size=100):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"inputs": torch.tensor(float(index)), "name": f"sample {index}"}


class Endless(Sampler):
    """A training sampler of the kind that never stops."""

    def __init__(self, size):
        self.size, self.asked = size, 0

    def __iter__(self):
        for number in itertools.count():
            self.asked += 1
            yield number * 7 % self.size


class Stream(IterableDataset):
    def __init__(self, size=100):
        self.size, self.passes = size, 0

    def __iter__(self):
        self.passes += 1
        yield from (torch.tensor(float(number)) for number in range(self.size))


SPLIT = random_split(DATA, [40, 60], torch.Generator())[1].indices

MAP_STYLE = {
    "in order": (lambda: DataLoader(DATA, 16), range(100)),
    "shuffled": (lambda: DataLoader(DATA, 16, shuffle=True, generator=torch.Generator().manual_seed(0)), range(100)),
    "incomplete batches dropped": (lambda: DataLoader(DATA, 16, shuffle=True, drop_last=True), range(100)),
    "sampler of some": (lambda: DataLoader(DATA, 16, sampler=SubsetRandomSampler(range(10, 60))), range(10, 60)),
    "subset of some": (lambda: DataLoader(Subset(DATA, range(30, 90)), 16, shuffle=True), range(30, 90)),
    "subset of subset": (lambda: DataLoader(Subset(Subset(DATA, range(1, 99)), np.arange(50)), 16), range(1, 51)),
    "split": (lambda: DataLoader(random_split(DATA, [40, 60], torch.Generator())[1], 16), SPLIT),
    "batch sampler": (
        lambda: DataLoader(DATA, batch_sampler=BatchSampler(range(5, 37), 4, drop_last=True)),
        range(5, 37),
    ),
    "own batches": (lambda: DataLoader(DATA, batch_sampler=[[1, 2, 3], [*range(40, 60)]]), [1, 2, 3, *range(40, 60)]),
    "endless sampler": (lambda: DataLoader(DATA, 16, sampler=Endless(100)), range(100)),
}


@pytest.mark.parametrize("kind", MAP_STYLE)
def test_a_pool_holds_what_the_loader_may_read(kind):
    make, expected = MAP_STYLE[kind]
    pool = sample_pool(make(), TINY)
    assert held(pool) == list(expected)
    assert len(pool) == len(expected)


def test_an_endless_batch_sampler_is_read_once_round():
    class Batches(Endless):
        def __iter__(self):
            numbers = super().__iter__()
            while True:
                yield list(itertools.islice(numbers, 4))

    batches = Batches(100)
    assert held(sample_pool(DataLoader(DATA, batch_sampler=batches), TINY)) == list(range(100))
    assert held(sample_pool(DataLoader(DATA, batch_sampler=batches), TINY, limit=4)) == sorted(
        number * 7 % 100 for number in range(16)
    )
    assert batches.asked == 0


def test_samplers_with_replacement_give_what_they_draw_each_once():
    weights = torch.zeros(100)
    weights[20:50] = 1
    pool = sample_pool(DataLoader(DATA, 16, sampler=WeightedRandomSampler(weights, 100)), TINY)
    assert set(held(pool)) <= set(range(20, 50))
    assert 20 <= len(pool) == len(set(held(pool)))
    again = sample_pool(DataLoader(DATA, 16, sampler=WeightedRandomSampler(weights, 100)), TINY)
    assert held(pool) == held(again)


@pytest.mark.parametrize(("limit", "size"), [(1, 16), (3, 48), (6, 96), (7, 100), (20, 100), (None, 100)])
def test_a_limit_counts_batches(limit, size):
    assert held(sample_pool(DataLoader(DATA, 16), TINY, limit)) == list(range(size))
    assert len(sample_pool(DataLoader(DATA, 16, shuffle=True), TINY, limit)) == size
    assert len(sample_pool(DataLoader(Stream(), 16), WITHOUT_LADDER, limit)) == size


def test_batches_are_collated_as_the_loader_does():
    loader = DataLoader(Numbers(), 16, collate_fn=lambda items: [item["name"] for item in items])
    assert sample_pool(loader, TINY).batch([3, 1]) == ["sample 3", "sample 1"]
    batch = sample_pool(DataLoader(Numbers(), 16), TINY).batch([3, 1])
    assert batch["inputs"].tolist() == [3.0, 1.0]
    assert batch["name"] == ["sample 3", "sample 1"]
    pairs = DataLoader(DATA, 16, collate_fn=lambda items: torch.stack([item[0] for item in items]) * 2)
    assert sample_pool(pairs, TINY).batch([3, 1]).tolist() == [6.0, 2.0]


def test_a_data_set_that_reads_many_at_once_is_asked_so():
    class Together(Numbers):
        def __getitems__(self, indices):
            return [torch.tensor(float(-index)) for index in indices]

    class NotTogether(Numbers):
        __getitems__ = None

    assert sample_pool(DataLoader(Together(), 16), TINY).batch([3, 1]).tolist() == [-3.0, -1.0]
    assert sample_pool(DataLoader(NotTogether(), 16), TINY).batch([3, 1])["inputs"].tolist() == [3.0, 1.0]


def test_subclasses_that_read_otherwise_are_read_so():
    class Doubled(TensorDataset):
        def __getitem__(self, index):
            return tuple(tensor[index] * 2 for tensor in self.tensors)

    class Negative(Subset):
        def __getitem__(self, index):
            return -super().__getitem__(index)[0]

        __getitems__ = None

    assert held(sample_pool(DataLoader(Doubled(torch.arange(100.0)), 16), TINY)) == list(range(0, 200, 2))
    assert held(sample_pool(DataLoader(Negative(DATA, range(20)), 16), TINY)) == [-number for number in range(20)]


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


@pytest.mark.parametrize("kind", [list, iter, lambda batches: (batch for batch in batches)])
def test_other_iterables_of_batches(kind):
    batches = [{"x": DATA[at : at + 20][0], "y": (DATA[at : at + 20][1],)} for at in range(0, 100, 20)]
    pool = sample_pool(kind(batches), TINY)
    assert len(pool) == 80
    batch = pool.batch([79, 20])
    assert batch["x"].tolist() == [79.0, 20.0]
    assert batch["y"][0].tolist() == [1, 2]
    assert len(sample_pool(kind(batches), TINY, limit=2)) == 40


def test_a_loader_without_batches_gives_its_own():
    class Batches(Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return torch.arange(20.0) + 20 * index

    pool = sample_pool(DataLoader(Batches(), batch_size=None, shuffle=True), WITHOUT_LADDER)
    assert sorted(held(pool)) == list(range(100))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([torch.ones(20, 5), torch.ones(20, 6)], r"agree in all others .* got \(20, 6\) after \(20, 5\)\. Pad"),
        ([(torch.ones(20), torch.ones(20)), (torch.ones(20),)], r"got \(\(20,\),\) after \(\(20,\), \(20,\)\)"),
        ([{"a": torch.ones(20)}, {"b": torch.ones(20)}], "after"),
        ([(torch.ones(20), torch.ones(19))], r"got \(\(20,\), \(19,\)\)\. Pad"),
        ([(torch.ones(20), torch.tensor(1.0))], r"got \(\(20,\), \(\)\)"),
        ([(torch.ones(20), ["a"] * 19)], "got .*'str'"),
        ([(torch.ones(20), "a")], r"got \(\(20,\), 'str'\)"),
        ([torch.ones(20), "text"], "got str"),
        ([[]], r"got \[\]"),
    ],
)
def test_batches_that_cannot_be_taken_apart_are_an_error(batches, message):
    with pytest.raises(PGEError, match=message):
        sample_pool(batches, TINY)


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
