"""Loaders over numbered samples: which ones there are, and how they become batches."""

import itertools
import multiprocessing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

from helpers import TINY
from pge_lightning.collect.warmup import place
from pge_lightning.errors import PGEError
from pge_lightning.samples import sample_pool
from pge_lightning.samples.content import content_hash
from sample_helpers import DATA, WITHOUT_LADDER, Numbers, held


class Endless(Sampler):
    """A training sampler of the kind that never stops."""

    def __init__(self, size):
        self.size, self.asked = size, 0

    def __iter__(self):
        for number in itertools.count():
            self.asked += 1
            yield number * 7 % self.size


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


class Held(Dataset):
    """Samples of any kind, in memory."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class Streamed(IterableDataset):
    """The same, one after another."""

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


class Named(NamedTuple):
    inputs: Tensor
    target: dict


@dataclass
class Record:
    inputs: Tensor
    name: str


def columns(items):
    return tuple(zip(*items, strict=True))


def popping(items):
    """Changes the samples, as some collate functions do."""
    names = [item.pop("name") for item in items]
    return {"inputs": torch.stack([item["inputs"].mul_(2) for item in items]), "name": names}


def records(items):
    return Record(torch.stack([item.inputs for item in items]), " ".join(item.name for item in items))


def boxes(i):
    return torch.ones(3, 4 + i % 3, 5), {"boxes": torch.arange(4.0 * (i % 4)).view(-1, 4), "labels": [i] * (i % 4)}


ODD = {
    "dictionaries with texts": (lambda i: {"inputs": torch.tensor(i), "name": f"{i}", "size": i}, default_collate),
    "nested tuples": (lambda i: (torch.tensor(i), (float(i), [np.ones(2) * i, f"{i}"])), default_collate),
    "named tuples": (lambda i: Named(torch.ones(2) * i, {"y": i}), default_collate),
    "data classes": (lambda i: Record(torch.ones(2) * i, f"{i}"), records),
    "ragged lists": (boxes, columns),
    "changed by the collate function": (lambda i: {"inputs": torch.ones(2) * i, "name": f"{i}"}, popping),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("form", [Held, Streamed])
def test_samples_of_any_kind_make_the_batches_that_the_loader_makes(kind, form):
    sample, collate = ODD[kind]
    loader = DataLoader(form([sample(i) for i in range(40)]), 8, collate_fn=collate)
    pool = sample_pool(loader, TINY)
    for _ in range(2):
        batch = pool.batch([5, 1, 5, 2])
        assert type(batch) is type(collate([sample(0)]))
        assert content_hash(batch) == content_hash(collate([sample(i) for i in (5, 1, 5, 2)]))
    assert pool.fingerprint() == sample_pool(loader, TINY).fingerprint()
    assert content_hash(list(loader.dataset.samples)) == content_hash([sample(i) for i in range(40)])


def test_a_step_that_changes_its_batch_changes_no_sample():
    loader = DataLoader(Held([boxes(i) for i in range(40)]), 8, collate_fn=columns)
    pool = sample_pool(loader, TINY)
    pool.batch([3])[0][0].zero_()
    assert pool.batch([3])[0][0].sum() == 3 * 4 * 5
    history = torch.ones(2, requires_grad=True) * 2
    assert sample_pool(DataLoader(Held([history] * 16), 8, collate_fn=list), TINY).batch([0])[0] is history


@pytest.mark.parametrize("form", [Held, Streamed])
def test_graphs_come_through_their_own_loader(form):
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader as GraphLoader

    def graph(i):
        nodes = 2 + i % 3
        return Data(x=torch.full((nodes, 2), i).double(), edge_index=torch.zeros(2, i % 4).long(), y=i % 2)

    graphs = [graph(i) for i in range(40)]
    pool = sample_pool(GraphLoader(form(graphs), batch_size=8), TINY)
    batch = pool.batch([4, 1])
    assert batch.x[:, 0].tolist() == [4, 4, 4, 1, 1, 1]
    assert batch.batch.tolist() == [0, 0, 0, 1, 1, 1]
    assert pool.fingerprint() == sample_pool(GraphLoader([graph(i) for i in range(40)], 8), TINY).fingerprint()
    assert pool.fingerprint() != sample_pool(GraphLoader([graph(i + 1) for i in range(40)], 8), TINY).fingerprint()
    placed = place(torch.nn.Linear(1, 1), batch, torch.device("cpu"))
    assert (placed.x.dtype, placed.edge_index.dtype) == (torch.float32, torch.int64)
    with pytest.raises(PGEError, match=r"got DataBatch.*single samples, which may be of any kind"):
        sample_pool([batch], TINY)


def test_neighbours_are_sampled_by_their_own_loader():
    from torch_geometric.data import Data
    from torch_geometric.loader import NodeLoader
    from torch_geometric.sampler import BaseSampler, SamplerOutput

    class Alone(BaseSampler):
        """Each node without its neighbours."""

        sample_from_edges = None

        def sample_from_nodes(self, index):
            none = torch.zeros(0).long()
            return SamplerOutput(index.node, none, none, none, metadata=(index.input_id, None))

    data = Data(x=torch.arange(100.0).unsqueeze(1), edge_index=torch.zeros(2, 0).long())
    pool = sample_pool(NodeLoader(data, Alone(), input_nodes=torch.arange(20, 60), batch_size=8), TINY)
    assert len(pool) == 40
    assert pool.batch([0, 7]).x.flatten().tolist() == [20.0, 27.0]


class Doubling(DataLoader):
    """Does more to batches than its data set and collate function do."""

    def __iter__(self):
        return ([column * 2 for column in batch] for batch in super().__iter__())


class Lasting(DataLoader):
    """Keeps one iterator over all epochs."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        sampler = self.batch_sampler
        vars(self)["batch_sampler"] = type("Repeated", (), {"__iter__": lambda _: itertools.cycle(iter(sampler))})()
        self.lasting = super().__iter__()

    def __iter__(self):
        return itertools.islice(self.lasting, 7)


def test_a_loader_that_does_more_is_asked_itself():
    generator = torch.Generator().manual_seed(0)
    loader = Doubling(DATA, 16, shuffle=True, generator=generator, num_workers=1)
    before = generator.get_state()
    pool = sample_pool(loader, WITHOUT_LADDER)
    assert sorted(held(pool)) == list(range(0, 200, 2))
    assert torch.equal(generator.get_state(), before)
    stream = Doubling(Streamed([(torch.tensor(i), i) for i in range(100)]), 16)
    assert held(sample_pool(stream, TINY)) == list(range(0, 128, 2))


def test_a_loader_that_keeps_its_iterator_is_not_moved():
    loader = Lasting(DATA, 16)
    assert held(sample_pool(loader, TINY)) == list(range(100))
    assert next(loader.lasting)[0].tolist() == list(range(16))


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 2},
        {"num_workers": 1, "persistent_workers": True, "prefetch_factor": 4},
        {"num_workers": 1, "multiprocessing_context": "spawn", "timeout": 9},
        {"pin_memory": True},
    ],
)
@pytest.mark.parametrize("data", [DATA, Streamed([(torch.tensor(float(i)), i % 3) for i in range(100)])])
def test_how_a_loader_loads_changes_nothing(data, options):
    processes = multiprocessing.active_children()
    pool = sample_pool(DataLoader(data, 16, **options), WITHOUT_LADDER)
    assert held(pool) == list(range(100))
    assert pool.fingerprint() == sample_pool(DataLoader(data, 16), WITHOUT_LADDER).fingerprint()
    assert set(multiprocessing.active_children()) <= set(processes)


class Drawn(Dataset):
    """Notes the process that reads it."""

    process = None

    def __len__(self):
        return 100

    def __getitem__(self, index):
        assert multiprocessing.parent_process() is None
        self.process = multiprocessing.current_process().name
        return index, 0


def test_a_loader_within_another_iterable_is_read_in_this_process():
    class Named:
        def __init__(self, loader):
            self.loader, self.read = loader, 0

        def __iter__(self):
            for numbers, _ in self.loader:
                self.read += 1
                yield {"numbers": numbers}

    data = Drawn()
    outer = Named(DataLoader(data, 16, shuffle=True, num_workers=2, persistent_workers=True))
    batch = sample_pool(outer, WITHOUT_LADDER).batch(range(100))
    assert sorted(batch["numbers"].tolist()) == list(range(100))
    assert (outer.read, data.process) == (0, None)
    assert outer.loader.num_workers == 2
