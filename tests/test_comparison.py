"""Comparisons by directions say what comparisons of whole signatures say, whatever is kept, missing or damaged."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from pge_lightning.errors import ArtifactError, IncomparableError, PGEError
from pge_lightning.estimators.comparison import Comparison, compare_units
from pge_lightning.estimators.library_gaps import library_gaps
from pge_lightning.estimators.signatures import signature_of
from pge_lightning.functional.gap import gaps_by_unit
from pge_lightning.gap import Gap
from pge_lightning.library import Library
from pge_lightning.probe import Probe, Walk
from pge_lightning.signature import Signature
from pge_lightning.source import SourceFacts

PROBE = Probe(name="mine", restarts=3, budgets=(200, 1000))
SHAPES = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "linear.weight": (5, 7), "last.weight": (2, 5)}
KINDS = ["kernelwise", "layerwise"]
NAMES = ["a", "b", "c"]


def signature(seed, **fields):
    generator = torch.Generator().manual_seed(seed)
    units = {name: torch.randn(3, *shape, generator=generator) for name, shape in SHAPES.items()}
    starts = {name: ("s0", "s1", "s2") for name in SHAPES}
    return dataclasses.replace(Signature(units, starts, PROBE, 200, 3, f"data {seed}", 1000), **fields)


def add(library, name, stored, overwrite=False):
    facts = SourceFacts("encoder", 10, 1000, None, None, 1.0, 1.0, "2025-01-01T00:00:00+00:00")
    return library.register(name, {"w": torch.ones(1)}, facts, [library.put_signature(name, stored)], overwrite)


@pytest.fixture
def library(tmp_path):
    library = Library(tmp_path / "library")
    for seed, name in enumerate(NAMES):
        add(library, name, signature(seed))
    return library


def measure(library, target=None, kind="kernelwise", cache=True, probe=PROBE, rung=200):
    sources = {name: library.open(name) for name in library.names()}
    target = signature(9) if target is None else target
    return Comparison(target, kind, probe, rung, library.cache if cache else None).measure(sources)


def exactly(library, target=None, kind="kernelwise", probe=PROBE, rung=200):
    """All of each signature, read from its file."""
    found = {}
    for name in library.names():
        try:
            whole = signature_of(library.open(name), probe, rung)
            found[name] = compare_units(whole, signature(9) if target is None else target, kind)
        except (PGEError, ValueError) as error:
            found[name] = error
    return found


def assert_close(found, exact):
    assert list(found) == list(exact)
    for name, table in exact.items():
        if isinstance(table, Exception):
            assert (type(found[name]), str(found[name])) == (type(table), str(table))
        else:
            assert torch.allclose(found[name], table, rtol=0, atol=1e-6)


def assert_same(found, other):
    assert list(found) == list(other)
    assert all(torch.equal(table, other[name]) for name, table in found.items())


def kept(library):
    return sorted(Path(library.root).glob(".directions/*"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_changes_no_bit_and_is_near_the_exact_gaps(kind, library):
    first = measure(library, kind=kind)
    assert_close(first, exactly(library, kind=kind))
    assert len(kept(library)) == len(NAMES)
    for path in Path(library.root).glob("*/mine-*"):
        path.write_bytes(b"no longer needed")
    assert_same(measure(library, kind=kind), first)


def test_what_is_kept_of_a_source_goes_with_it(library):
    for kind in KINDS:
        measure(library, kind=kind)
    library_gaps({name: library.open(name) for name in NAMES}, PROBE, 200, "kernelwise", library.cache)
    gaps = Path(library.root, ".gaps")
    assert len(kept(library)) == 2 * len(NAMES)
    assert len([*gaps.iterdir()]) == len(NAMES)
    add(library, "b", signature(1), overwrite=True)  # the same once more
    assert len(kept(library)) == 2 * len(NAMES)
    add(library, "b", signature(7), overwrite=True)
    assert len(kept(library)) == 2 * (len(NAMES) - 1)
    library.remove("a")
    assert len(kept(library)) == 2 * (len(NAMES) - 2)
    assert len([*gaps.iterdir()]) == len(NAMES) - 2
    assert_close(measure(library), exactly(library))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_cache_nothing_is_kept_and_all_is_the_same(kind, library):
    found = measure(library, kind=kind, cache=False)
    assert kept(library) == []
    assert_same(measure(library, kind=kind), found)


def test_formulas_do_not_share_what_is_kept(library):
    measure(library)
    assert_close(measure(library, kind="layerwise"), exactly(library, kind="layerwise"))
    assert len(kept(library)) == 2 * len(NAMES)
    assert_close(measure(library), exactly(library))


@pytest.mark.parametrize("content", [b"", b"foreign", None])
def test_what_is_kept_may_be_damaged_or_removed_at_any_time(content, library):
    first = measure(library)
    whole = {path: path.read_bytes() for path in kept(library)}
    for path, data in whole.items():
        path.write_bytes(data[:-8] + b"\0\0\0\0" + data[-4:] if content is None else content)
    assert_same(measure(library), first)
    assert {path: path.read_bytes() for path in kept(library)} == whole
    shutil.rmtree(Path(library.root, ".directions"))
    assert_same(measure(library), first)
    assert {path: path.read_bytes() for path in kept(library)} == whole


def test_a_library_that_cannot_be_written_is_compared(library):
    Path(library.root, ".directions").write_text("a file where the folder should be")
    for _ in range(2):
        assert_close(measure(library), exactly(library))


def test_a_source_that_was_replaced_is_not_taken_for_the_old_one(library):
    first = measure(library)
    add(library, "b", signature(77), overwrite=True)
    found = measure(library)
    assert_close(found, exactly(library))
    assert not torch.allclose(found["b"], first["b"], atol=1e-3)
    assert torch.equal(found["a"], first["a"])


def test_damage_to_a_signature_is_told_where_it_is_read(library):
    first = measure(library)
    (path,) = Path(library.root, "b").glob("mine-*")
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    assert_same(measure(library), first)
    with pytest.raises(ArtifactError, match="damaged"):
        library.verify("b")
    assert isinstance(measure(library, cache=False)["b"], ArtifactError)
    shutil.rmtree(Path(library.root, ".directions"))
    found = measure(library)
    assert isinstance(found["b"], ArtifactError)
    assert torch.equal(found["a"], first["a"])


OTHER_START = {name: ("s0", "s1", "other") for name in SHAPES}
OTHER_SHAPE = {**signature(1).units, "linear.weight": torch.ones(3, 5, 8)}
NOT_COMPARABLE = {
    "starts": {"starts": OTHER_START},
    "shape": {"units": OTHER_SHAPE},
    "unit missing": {"units": {name: torch.ones(3, *SHAPES[name]) for name in list(SHAPES)[1:]}},
    "one restart less": {"units": {name: unit[:2] for name, unit in signature(1).units.items()}},
    "frozen for one": {"frozen": {"conv.weight": "f"}},
    "frozen elsewhere": {"frozen": {"stem": "f1"}},
}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("fields", NOT_COMPARABLE.values(), ids=NOT_COMPARABLE)
def test_what_does_not_compare_is_refused_in_the_same_words_every_time(fields, cache, library):
    names = fields.get("units", SHAPES)
    starts = fields.get("starts", {name: ("s0", "s1", "s2") for name in names})
    add(library, "b", signature(1, **{**fields, "starts": starts}), overwrite=True)
    target = signature(9, frozen={"stem": "f0"})
    for _ in range(2):
        found = measure(library, target, cache=cache)
        assert_close(found, exactly(library, target))
        assert isinstance(found["b"], (IncomparableError, ValueError))
        assert all(isinstance(found[name], torch.Tensor) for name in "ac")


@pytest.mark.parametrize("target", [{"budget": 1000}, {"probe": dataclasses.replace(PROBE, lr=9.0)}])
def test_a_target_of_another_recipe_or_budget_compares_with_none_of_what_is_kept(target, library):
    measure(library)
    found = measure(library, signature(9, **target))
    assert_close(found, exactly(library, signature(9, **target)))
    assert all(isinstance(error, IncomparableError) for error in found.values())


def test_a_target_with_a_walk_of_its_own_compares_at_any_budget(library):
    probe = dataclasses.replace(PROBE, target=Walk(steps=3, batch_size=10, lr=1e-3))
    target = signature(9, probe=probe.of_target, budget=37)
    first = measure(library, target, probe=probe)
    assert_close(first, exactly(library, target, probe=probe))
    assert_same(first, measure(library))  # by what is kept for any target
    add(library, "b", signature(1, budget=1000), overwrite=True)
    assert "at 200 samples, but it has 'mine' at 1000" in str(measure(library, target, probe=probe)["b"])


def test_what_is_frozen_on_both_sides_is_compared_by_what_is_kept(library):
    for seed, name in enumerate(NAMES):
        add(library, name, signature(seed, frozen={"stem": "f0"}), overwrite=True)
    target = signature(9, frozen={"stem": "f0"})
    first = measure(library, target)
    assert_close(first, exactly(library, target))
    for path in Path(library.root).glob("*/mine-*"):
        path.unlink()
    assert_same(measure(library, target), first)


@pytest.mark.parametrize("kind", KINDS)
def test_what_compares_although_it_differs_is_compared_exactly(kind, library):
    add(library, "a", signature(0, frozen={"head": "f0"}), overwrite=True)
    turned = signature(1)
    turned = dataclasses.replace(turned, units=dict(reversed(turned.units.items())))
    add(library, "b", turned, overwrite=True)  # another kernel is next to the head
    for _ in range(2):
        found = measure(library, kind=kind)
        assert_close(found, exactly(library, kind=kind))
        assert torch.equal(found["a"], gaps_by_unit(signature(0).units, signature(9).units, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["conv.weight", "conv.bias", "last.weight"])
def test_values_that_are_not_finite_are_refused_on_either_side(unit, kind, library):
    def spoilt(seed):
        found = signature(seed)
        found.units[unit][1].view(-1)[0] = torch.nan
        return found

    sound = measure(library, kind=kind)
    for found in (measure(library, spoilt(9), kind), exactly(library, spoilt(9), kind)):
        assert all(f"target holds nan or inf in unit '{unit}'" in str(error) for error in found.values())
    add(library, "b", spoilt(1), overwrite=True)
    for _ in range(2):
        found = measure(library, kind=kind)
        assert f"source holds nan or inf in unit '{unit}'" in str(found["b"])
        assert torch.equal(found["a"], sound["a"])
    starts = {name: ("s0", "s1", "other") for name in SHAPES}
    add(library, "b", dataclasses.replace(spoilt(1), starts=starts), overwrite=True)
    assert isinstance(measure(library, kind=kind)["b"], IncomparableError)  # told first, as it always was


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_length_zero_are_equal_to_each_other_and_orthogonal_to_the_rest(kind, library):
    zero = {**signature(1).units, "conv.weight": torch.zeros(3, 4, 3, 3, 3)}
    add(library, "b", signature(1, units=zero), overwrite=True)
    for target, gap in ((signature(9), 1.0), (signature(9, units=zero), 0.0)):
        for _ in range(2):
            found = measure(library, target, kind)
            assert_close(found, exactly(library, target, kind))
            assert sorted(SHAPES).index("conv.weight") == 1
            assert found["b"][:, 0 if kind == "kernelwise" else 1].tolist() == [gap] * 3


@pytest.mark.parametrize("kind", ["unit", "published"])
def test_formulas_without_units_are_compared_as_ever(kind, library):
    found = measure(library, kind=kind)
    assert found == exactly(library, kind=kind)
    assert all(isinstance(gap, Gap) for gap in found.values())
    assert kept(library) == []


def test_signatures_without_pairs_are_compared_as_ever(tmp_path):
    library, probe = Library(tmp_path), Probe(name="mine", restarts=None, paired=False, budgets=())
    mean = {name: stack.mean(dim=0, keepdim=True) for name, stack in signature(0).units.items()}
    stored = signature(0, probe=probe, starts={}, units=mean)
    add(library, "a", stored)
    found = measure(library, stored, probe=probe, rung=None)
    assert str(found) == str(exactly(library, stored, probe=probe, rung=None))  # nan does not equal itself
    assert isinstance(found["a"], Gap)
    assert kept(library) == []


def test_sources_that_could_not_be_opened_keep_their_errors(library):
    error = ArtifactError("damaged")
    found = Comparison(signature(9), "kernelwise", PROBE, 200, library.cache).measure({
        "z": error,
        "a": library.open("a"),
    })
    assert list(found) == ["a", "z"]
    assert found["z"] is error
