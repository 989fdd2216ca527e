"""Whatever is touched is a copy or is put back."""

import functools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from helpers import points
from pge_lightning.isolation import borrowed, derive_seed, isolated_randomness, seed_all, undone


def draws():
    return torch.rand(2).tolist(), np.random.rand(2).tolist(), [random.random() for _ in range(2)]


def test_seeds_are_the_same_everywhere_and_tell_their_parts_apart():
    assert derive_seed(0, "encoder") == 5217764333376158035
    parts = [(0, "a"), (1, "a"), (0, "b"), ("0", "a"), (0, "a", 0), (0, "aa"), ("0a",), ("0", "a", "")]
    seeds = [derive_seed(*each) for each in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seed_all_reaches_every_generator():
    seed_all(derive_seed(3))
    first = draws()
    draws()
    seed_all(derive_seed(3))
    assert draws() == first


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_global_randomness_is_put_back(seed, error):
    seed_all(1)
    expected = draws()
    seed_all(1)
    try:
        with isolated_randomness(seed):
            inside = draws()
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert draws() == expected
    assert (inside == expected) is (seed is None)


def test_seeding_leaves_devices_that_are_not_in_use_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("bound a device that is not in use"))
    if torch.cuda.is_initialized():
        pytest.skip("a device is in use")
    seed_all(1)
    assert torch.initial_seed() == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_randomness_of_devices_is_put_back():
    torch.cuda.manual_seed_all(1)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed_all(1)
    with isolated_randomness(seed=3):
        torch.rand(3, device="cuda")
    assert torch.equal(torch.rand(3, device="cuda"), expected)


class Augment:
    """A transform with generators of its own."""

    def __init__(self):
        self.generators = {"numpy": np.random.default_rng(1), "legacy": np.random.RandomState(2)}
        self.steps = [random.Random(3)]

    def __call__(self, value):
        return value + self.generators["numpy"].normal() + self.generators["legacy"].normal() + self.steps[0].random()


class Drawing(Dataset):
    """Draws from every kind of generator, and counts what it is asked for."""

    def __init__(self):
        self.torch, self.transform, self.asked = torch.Generator().manual_seed(0), Augment(), 0

    def __len__(self):
        return 32

    def __getitem__(self, index):
        self.asked += 1
        self.last = index
        return self.transform(index + torch.rand((), generator=self.torch))


@pytest.mark.parametrize(
    "wrap", [lambda data: data, lambda data: Subset(data, range(20)), lambda d: ConcatDataset([d])]
)
@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_borrowed_loader_reads_on_as_if_it_had_not_been_read(wrap, error):
    def loader():
        torch.manual_seed(0)
        data = Drawing()
        shuffle = torch.Generator().manual_seed(1)
        return data, DataLoader(wrap(data), batch_size=8, shuffle=True, generator=shuffle)

    (data, mine), (_, twin) = loader(), loader()
    try:
        with borrowed(mine):
            list(mine)
            assert data.asked >= 20
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert data.asked == 0
    assert not hasattr(data, "last")
    assert all(torch.equal(one, two) for one, two in zip(mine, twin, strict=True))


def test_a_persistent_iterator_is_laid_aside():
    loader = DataLoader(points(), batch_size=50, num_workers=1, persistent_workers=True)
    list(loader)
    iterator = loader._iterator
    with borrowed(loader):
        assert len(list(loader)) == 2
        assert loader._iterator is not iterator
    assert loader._iterator is iterator


def test_any_iterable_can_be_borrowed():
    class Stream:
        def __init__(self):
            self.position, self._iterator, self.cycle = 0, "its own", self

        def __iter__(self):
            for _ in range(3):
                self.position += 1
                yield self._iterator

    stream = Stream()
    with borrowed(stream):
        assert list(stream) == ["its own"] * 3
    assert stream.position == 0
    with borrowed([1, 2]), borrowed(iter([1, 2])):
        pass


def test_long_containers_are_not_searched():
    class Images(Dataset):
        def __init__(self):
            self.items = [random.Random(0) for _ in range(1000)]

    data = Images()
    with borrowed(data):
        data.items[0].random()
    assert data.items[0].random() != random.Random(0).random()


class Holding:
    """Neither a loader nor a data set, but holds some."""

    def __init__(self, **held):
        vars(self).update(held)


@pytest.mark.parametrize(
    "wrap", [lambda loader: {"a": [loader, (loader,)]}, lambda loader: Holding(inner=Holding(loaders=[loader]))]
)
def test_whatever_holds_loaders_can_be_borrowed(wrap):
    def loader():
        shuffle = torch.Generator().manual_seed(1)
        return DataLoader(
            Drawing(), batch_size=8, shuffle=True, generator=shuffle, num_workers=1, persistent_workers=True
        )

    mine, twin = loader(), loader()
    torch.manual_seed(0)
    list(mine)
    iterator = mine._iterator
    torch.manual_seed(0)
    list(twin)
    with borrowed(wrap(mine)), isolated_randomness():
        list(mine)
        mine.dataset.asked += 1
        mine.sampler.passes = 1
        assert mine._iterator is not iterator
    assert mine._iterator is iterator
    assert (mine.dataset.asked, hasattr(mine.sampler, "passes")) == (0, False)
    assert all(torch.equal(one, two) for one, two in zip(mine, twin, strict=True))


def test_generators_in_functions_are_put_back():
    enclosed, bound = np.random.default_rng(0), random.Random(0)
    loader = Holding(one=lambda: enclosed.random(), other=functools.partial(random.Random.random, bound))
    with borrowed(loader):
        loader.one(), loader.other()
    assert (enclosed.random(), bound.random()) == (np.random.default_rng(0).random(), random.Random(0).random())


@pytest.mark.parametrize("interruptions", [0, 1])
def test_what_is_interrupted_while_it_is_undone_is_undone_again(interruptions):
    held, left = ["changed", "changed"], [KeyboardInterrupt] * interruptions

    def undo():
        held[0] = "as before"
        if left:
            raise left.pop()
        held[1] = "as before"

    if interruptions:
        with pytest.raises(KeyboardInterrupt), undone(undo):
            pass
    else:
        with undone(undo):
            pass
    assert held == ["as before", "as before"]
