"""What a library keeps although it could be computed again comes back as it was, or not at all."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pge_lightning.directions import Directions
from pge_lightning.errors import ArtifactError
from pge_lightning.library import Library


@pytest.fixture
def cache(tmp_path):
    return Library(tmp_path).cache


def some_directions():
    generator = torch.Generator().manual_seed(0)
    return Directions({"b": torch.randn(2, 3, generator=generator), "a": torch.ones(2, 1)}, ("digest",))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_directions_come_back_bit_for_bit(cache, tmp_path):
    cache.put_directions("key", some_directions())
    back = cache.get_directions("key")
    assert same(back.units, some_directions().units)
    assert back.digests == ("digest",)
    assert cache.get_directions("other") is None
    assert [path.name for path in Path(tmp_path, ".directions").iterdir()] == ["key.safetensors"]


def test_no_byte_of_kept_directions_changes_them_unnoticed(cache, tmp_path):
    cache.put_directions("key", some_directions())
    path = Path(tmp_path, ".directions", "key.safetensors")
    whole, refused = path.read_bytes(), 0
    for position in range(len(whole)):
        for bits in (1, 255):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ bits]) + whole[position + 1 :])
            found = cache.get_directions("key")
            refused += found is None
            assert found is None or same(found.units, some_directions().units)
    assert refused > 1.5 * len(whole)  # what is left is space, and the digest, which is compared


@pytest.mark.parametrize("length", [0, 7, 100, -4, -1])
def test_cut_files_are_none_at_all(cache, tmp_path, length):
    cache.put_directions("key", some_directions())
    cache.put_gaps("key", {"a": np.ones((2, 3))})
    for folder in (".directions", ".gaps"):
        path = Path(tmp_path, folder, "key.safetensors")
        path.write_bytes(path.read_bytes()[:length])
    assert cache.get_directions("key") is None
    assert cache.get_gaps("key") == {}


def test_gaps_come_back_by_their_keys_in_order(cache):
    gaps = {name: np.random.default_rng(0).random((2, 3)) for name in ("z", "a", "m")}
    cache.put_gaps("key", gaps)
    back = cache.get_gaps("key")
    assert list(back) == ["z", "a", "m"]
    assert all(np.array_equal(back[name], gaps[name]) for name in gaps)
    assert cache.get_gaps("other") == {}


def test_one_is_never_taken_for_the_other(cache, tmp_path):
    cache.put_directions("key", some_directions())
    Path(tmp_path, ".gaps").symlink_to(Path(tmp_path, ".directions"))
    assert cache.get_gaps("key") == {}
    cache.put_gaps("key", {"a": np.ones((2, 3))})
    assert cache.get_directions("key") is None


def test_a_library_that_cannot_be_written_says_so(cache, tmp_path):
    for folder in (".directions", ".gaps"):
        Path(tmp_path, folder).write_text("a file where the folder should be")
    with pytest.raises(ArtifactError):
        cache.put_directions("key", some_directions())
    with pytest.raises(ArtifactError):
        cache.put_gaps("key", {"a": np.ones((2, 3))})
    assert cache.get_directions("key") is None
    assert cache.get_gaps("key") == {}
