"""Batches that come one after another are taken apart."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
)

from helpers import TINY
from pge_lightning.errors import PGEError
from pge_lightning.samples import sample_pool
from sample_helpers import DATA, WITHOUT_LADDER, held


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


class Held:
    def __init__(self, value):
        self.value = value


class Point(NamedTuple):
    where: np.ndarray
    names: tuple


def test_columns_of_strings_and_arrays_are_taken_apart():
    def batch(at):
        numbers = range(at, at + 20)
        point = Point(np.arange(at, at + 20), tuple(f"{n}" for n in numbers))
        return {"point": point, "more": [torch.tensor(numbers), [None, *numbers[1:]], {"size": np.ones((20, 2))}]}

    pool = sample_pool([batch(at) for at in range(0, 100, 20)], TINY)
    found = pool.batch([79, 20, 3])
    assert found["point"].where.tolist() == [79, 20, 3]
    assert found["point"].names == ("79", "20", "3")
    assert found["more"][0].tolist() == [79, 20, 3]
    assert found["more"][1] == [79, None, 3]
    assert found["more"][2]["size"].shape == (3, 2)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_data_set_of_whole_batches(shuffle):
    class Batches(Dataset):
        def __init__(self):
            self.reads = 0

        def __len__(self):
            return 5

        def __getitem__(self, index):
            self.reads += 1
            return {"x": np.arange(20) + 20 * index, "name": [f"{index}"] * 20}

    data = Batches()
    pool = sample_pool(DataLoader(data, batch_size=None, shuffle=shuffle, num_workers=1), WITHOUT_LADDER)
    batch = pool.batch(range(100))
    assert sorted(batch["x"].tolist()) == list(range(100))
    assert [int(name) for name in batch["name"]] == [x // 20 for x in batch["x"].tolist()]
    assert isinstance(batch["x"], Tensor)
    assert data.reads == 0
    assert len(sample_pool(DataLoader(data, batch_size=None), WITHOUT_LADDER, limit=2)) == 40


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.ones(2, 3), [torch.ones(1), torch.ones(2)]), r"got \(\(2, 3\), \[\(1,\), \(2,\)\]\)\. Pad"),
        ({"x": torch.ones(2), "domain": "a"}, r"got \{'x': \(2,\), 'domain': 'str'\}\. Pad"),
        ({"x": torch.ones(2), "size": np.float32(1)}, r"'size': \(\)\}\. Pad"),
        (Held(torch.ones(2)), r"got Held\. .* DataLoader whose data set gives single samples"),
    ],
)
def test_what_is_no_column_is_named(batch, message):
    with pytest.raises(PGEError, match=message):
        sample_pool([batch], TINY)
