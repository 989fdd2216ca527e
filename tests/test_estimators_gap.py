"""The gap as an estimator: formulas, weights of units, rungs, the noise floor, and sources that do not compare."""

import dataclasses
import itertools
import math
import shutil
from pathlib import Path

import pytest
import torch

from pge_lightning.collect import Collector, collect_signature
from pge_lightning.encoder import encoder_state
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.estimators import Estimate, GapEstimator, Target
from pge_lightning.estimators.gap import gaps
from pge_lightning.estimators.library_gaps import library_gaps
from pge_lightning.estimators.signatures import signature_of
from pge_lightning.functional import gaps_by_unit, spread_weights
from pge_lightning.gap import KINDS, compare
from pge_lightning.library import Library
from pge_lightning.probe import PROBES, Walk
from trainer_helpers import LADDER, Net, add_source, make_loader, plain_loss

NAMES = ["a-far", "near", "z-far"]
TARGET_SEED = 1


@pytest.fixture(scope="module")
def signature():
    """The target's signature; its data are those of the source 'near', with fewer samples."""
    collector = Collector(Net(), make_loader(TARGET_SEED, 64), probe=LADDER, loss_fn=plain_loss, encoder="encoder")
    return collector.collect(64)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    for name, seed in zip(NAMES, (11, TARGET_SEED, 12), strict=True):
        add_source(folder, name, seed=seed)
    return folder


@pytest.fixture
def library(collected, tmp_path):
    return Library(shutil.copytree(collected, tmp_path, dirs_exist_ok=True))


def opened(library):
    return {name: library.open(name) for name in library.names()}


def about(library, samples=64, **options):
    options = {"encoder": "encoder", "loss_fn": plain_loss, **options}
    return Target(Net(), make_loader(TARGET_SEED, samples), library, **options)


def assert_close(estimate, gap):
    """To what single precision leaves of directions, which kernelwise and layerwise rankings compare."""
    for field, other in (("value", "value"), ("low", "low"), ("high", "high"), ("replicates", "per_restart")):
        assert getattr(estimate, field) == pytest.approx(getattr(gap, other), abs=1e-6, nan_ok=True)


def zero(library, name):
    """Register a source anew, with gradients of length zero."""
    source = library.open(name)
    signature = source.load_signature(source.find(LADDER.recipe, 64))
    signature = dataclasses.replace(signature, units={unit: 0 * stack for unit, stack in signature.units.items()})
    file = library.put_signature(name, signature)
    library.register(name, source.load_weights(), source.facts, [file], overwrite=True)


# --- gaps of signatures


@pytest.mark.parametrize("kind", KINDS)
def test_without_weights_each_is_the_gap_of_two_signatures(kind, library, signature):
    found, floor, weighed = gaps(signature, opened(library), kind, weigh=False)
    assert list(found) == NAMES
    for name, estimate in found.items():
        assert_close(estimate, compare(signature_of(library.open(name), LADDER, 64), signature, kind))
    assert (floor, weighed) == (None, False)


@pytest.mark.parametrize("kind", KINDS)
def test_they_do_not_depend_on_the_order_of_the_library(kind, library, signature):
    sources = opened(library)
    assert gaps(signature, sources, kind) == gaps(signature, dict(reversed(sources.items())), kind)


@pytest.mark.parametrize("kind", ["kernelwise", "layerwise"])
def test_weighed_gaps_rank_by_the_mean_of_what_units_say(kind, library, signature):
    tables = {
        name: gaps_by_unit(signature_of(source, LADDER, 64).units, signature.units, kind)
        for name, source in opened(library).items()
    }
    stack = torch.stack(list(tables.values()))
    means = stack.mean(dim=1)
    standardised = ((means - means.mean(dim=0)) / means.std(dim=0)).mean(dim=1)
    found, floor, weighed = gaps(signature, opened(library), kind, halves=(signature, signature))
    assert sorted(found, key=lambda name: found[name].value) == [
        name for _, name in sorted(zip(standardised.tolist(), tables, strict=True))
    ]
    assert weighed
    assert floor.value == pytest.approx(0, abs=1e-12)
    means = stack @ spread_weights(stack)
    # Weights say how sources differ; how far all of them are is the plain mean.
    level = stack.mean(dim=(0, 2)) - means.mean(dim=0)
    for name, own in zip(tables, means, strict=True):
        assert found[name].replicates == pytest.approx((own + level).tolist(), abs=1e-6)


def test_two_sources_are_too_few_to_weigh(library, signature):
    pair = dict(list(opened(library).items())[:2])
    assert gaps(signature, pair) == gaps(signature, pair, weigh=False)
    assert gaps(signature, pair)[2] is False


@pytest.mark.parametrize("kind", ["unit", "published"])
def test_formulas_without_units_are_never_weighed(kind, library, signature):
    assert gaps(signature, opened(library), kind)[2] is False


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_that_fails_takes_no_part_in_the_others(kind, library, signature):
    sound = gaps(signature, opened(library), kind)[0]
    add_source(library.root, "broken", budgets=(16,))
    error = ArtifactError("it cannot be opened")
    found = gaps(signature, {**opened(library), "lost": error}, kind)[0]
    assert {name: found[name] for name in NAMES} == sound
    assert found["lost"] is error
    assert isinstance(found["broken"], PGEError)
    assert "at 64 samples, but it has 'ladder' at 16" in str(found["broken"])


def test_a_gradient_of_length_zero_never_stops_the_ranking(library, signature):
    sound = gaps(signature, opened(library), "unit")[0]
    zero(library, "a-far")
    found = gaps(signature, opened(library), "unit")[0]
    assert {name: found[name] for name in NAMES[1:]} == {name: sound[name] for name in NAMES[1:]}
    assert isinstance(found["a-far"], ValueError)
    assert "zero" in str(found["a-far"])


# --- the estimator


def test_arguments_are_checked_and_probes_may_be_named():
    with pytest.raises(ValueError, match=r"`kind` to be one of .*'kernelwise'.*but got 'euclidean'"):
        GapEstimator(kind="euclidean")
    with pytest.raises(ValueError, match="`probe`"):
        GapEstimator("slow")
    for generality in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"`generality` to be at least 0 and finite, but got {generality}"):
            GapEstimator(generality=generality)
    estimator = GapEstimator("fast")
    assert estimator.probes == [PROBES["fast"]]
    assert estimator.needs == {"inputs", "labels", "signatures"}  # no weights: it opens no source
    assert not estimator.higher_is_better


@pytest.mark.parametrize("kind", KINDS)
def test_it_compares_the_targets_signature_with_those_of_the_sources(kind, library, signature):
    target = about(library)
    found = GapEstimator(LADDER, kind=kind, name="mine").estimate(target, NAMES[1:])
    assert found == gaps(signature, {name: library.open(name) for name in NAMES[1:]}, kind)[0]
    assert target.details == {
        "mine": {
            "kind": kind,
            "weighed": False,
            "probe": "ladder",
            "budget": 64,
            "rung": 64,
            "generality": 1.0,
            "noise_floor": None,
        }
    }
    assert target.notes == []


def test_with_three_sources_units_are_weighed_unless_told_otherwise(library, signature):
    for weigh in (True, False):
        target = about(library)
        assert (
            GapEstimator(LADDER, weigh=weigh, generality=0.0).estimate(target, NAMES)
            == gaps(signature, opened(library), weigh=weigh)[0]
        )
        assert target.details["gap"]["weighed"] is weigh


def test_no_source_is_opened(library):
    for name in NAMES:
        (weights,) = (path for path in library._fs.ls(f"{library.root}/{name}", detail=False) if "encoder-" in path)
        library._fs.rm(weights)
    found = GapEstimator(LADDER).estimate(about(library), NAMES)
    assert all(isinstance(each, Estimate) for each in found.values())


def test_the_noise_floor_is_stated_where_it_is_asked_for(library):
    target = about(library)
    GapEstimator(LADDER, floor=True).estimate(target, NAMES)
    floor = target.details["gap"]["noise_floor"]
    assert 0 < floor < 2
    assert len(target.notes) == 1
    assert target.notes[0].startswith(f"Noise floor of gap at 32 samples: {floor:.3f} ± 0.")


def test_a_rung_can_be_named(library, signature):
    target = about(library)
    found = GapEstimator(LADDER, budget=16).estimate(target, NAMES)
    assert target.details["gap"]["budget"] == 16
    assert found != GapEstimator(LADDER).estimate(target, NAMES)
    with pytest.raises(PGEError, match=r"one of \[16, 32\], but got 64"):
        GapEstimator(LADDER, budget=64).estimate(about(library, samples=40), NAMES)


def test_a_target_with_a_walk_of_its_own_takes_all_its_samples_at_any_rung_of_the_sources(library):
    walked = dataclasses.replace(LADDER, target=Walk(steps=3, batch_size=10, lr=1e-3))
    for samples, budget, rung in ((24, None, 64), (24, 16, 16), (100, None, 64)):
        target = about(library, samples=samples)
        found = GapEstimator(walked, budget=budget).estimate(target, NAMES)
        details = target.details["gap"]
        assert (details["budget"], details["rung"]) == (samples, rung)
        loader = make_loader(TARGET_SEED, samples)
        options = {"probe": walked.of_target, "budget": samples, "encoder": "encoder"}
        own = collect_signature(Net(), loader, loss_fn=plain_loss, **options)
        assert (own.probe.steps, own.probe.batch_size, own.probe.lr) == (3, 10, 1e-3)
        assert found == gaps(own, opened(library), generality=1.0, probe=walked, rung=rung)[0]
    endless = Target(
        Net(), itertools.cycle(make_loader(TARGET_SEED, 128)), library, encoder="encoder", loss_fn=plain_loss
    )
    assert all(isinstance(each, Estimate) for each in GapEstimator(walked).estimate(endless, NAMES).values())
    assert endless.details["gap"]["budget"] == 64  # as many as the largest rung
    with pytest.raises(PGEError, match=r"one of \[16, 32, 64\], but got 24"):
        GapEstimator(walked, budget=24).estimate(about(library, samples=24), NAMES)


def test_how_targets_are_walked_can_be_changed_without_collecting_sources_again(library):
    columns = []
    for steps in (2, 5):
        probe = dataclasses.replace(LADDER, target=Walk(steps=steps, batch_size=8, lr=2e-3))
        for _ in range(2):  # the second time from what the library keeps
            columns.append(GapEstimator(probe).estimate(about(library), NAMES))
            assert all(isinstance(each, Estimate) for each in columns[-1].values())
    assert columns[0] == columns[1] != columns[2] == columns[3]


@pytest.mark.parametrize("kind", KINDS)
def test_a_target_that_takes_fewer_restarts_is_compared_in_these(kind, library, tmp_path):
    walk = Walk(steps=3, batch_size=10, lr=1e-3, restarts=2)
    probe, few = dataclasses.replace(LADDER, target=walk), dataclasses.replace(LADDER, restarts=2, target=walk)
    for name, seed in zip(NAMES, (11, TARGET_SEED, 12), strict=True):
        add_source(tmp_path / "few", name, seed=seed, probe=few)
    expected = GapEstimator(few, kind).estimate(about(Library(tmp_path / "few")), NAMES)
    for _ in range(2):  # the second time from what the library keeps
        found = GapEstimator(probe, kind).estimate(about(library), NAMES)
        for name, each in found.items():  # products of other shapes round their last bit otherwise
            assert each.replicates == pytest.approx(expected[name].replicates, abs=1e-12)
            assert len(each.replicates) == 2


def test_the_noise_floor_of_a_walked_target_compares_its_halves(library):
    walked = dataclasses.replace(LADDER, target=Walk(steps=3, batch_size=10, lr=1e-3))
    target = about(library, samples=40)
    GapEstimator(walked, floor=True).estimate(target, NAMES)
    assert 0 < target.details["gap"]["noise_floor"] < 2
    assert target.notes[0].startswith("Noise floor of gap at 16 samples:")


def test_a_probe_without_rungs_takes_the_budget_as_it_is(tmp_path):
    probe = dataclasses.replace(PROBES["published"], batch_size=8)
    add_source(tmp_path, "far", seed=11, probe=probe, samples=64)
    for budget in (None, 40):
        target = about(Library(tmp_path))
        found = GapEstimator(probe, kind="published", budget=budget).estimate(target, ["far"])
        assert isinstance(found["far"], Estimate)
        assert found["far"].replicates == (found["far"].value,)
        assert target.details["gap"]["budget"] == (budget or 64)


def test_two_gaps_share_the_targets_signature(library):
    calls = []

    def counting(module, batch):
        calls.append(1)
        return plain_loss(module, batch)

    target = about(library, loss_fn=counting, cache=False)
    for kind in KINDS:
        GapEstimator(LADDER, kind=kind).estimate(target, NAMES)
    assert len(calls) == LADDER.restarts * LADDER.steps


def test_a_source_of_other_weights_is_told_by_its_start(library, signature):
    source = library.open("near")
    stored = source.load_signature(source.find(LADDER.recipe, 64))
    starts = {**stored.starts, "encoder.0.bias": ("0" * 16, *stored.starts["encoder.0.bias"][1:])}
    file = library.put_signature("near", dataclasses.replace(stored, starts=starts))
    library.register("near", encoder_state(Net(), "encoder"), source.facts, [file], overwrite=True)
    found = GapEstimator(LADDER).estimate(about(library), NAMES)
    assert "'encoder.0.bias' started from other values" in str(found["near"])
    assert isinstance(found["a-far"], Estimate)


# --- gaps between sources


@pytest.mark.parametrize("weigh", [True, False])
@pytest.mark.parametrize("kind", ["kernelwise", "layerwise"])
def test_generality_is_a_mean_of_the_gap_and_of_gaps_to_other_sources(kind, weigh, library, signature):
    """By hand: three sources, for each the mean of how much its two gaps differ from those of the third."""
    sources = opened(library)
    stacks = {name: signature_of(source, LADDER, 64) for name, source in sources.items()}
    own = torch.stack([gaps_by_unit(stacks[name].units, signature.units, kind) for name in NAMES])
    equal = torch.full((own.shape[2],), 1 / own.shape[2], dtype=own.dtype)
    a, b, c = NAMES

    def told(weights, weight):
        def gap(one, other):
            return gaps_by_unit(stacks[one].units, stacks[other].units, kind) @ weights

        mean = (gap(a, b) + gap(b, c) + gap(a, c)) / 3
        found = []
        for table, (name, one, two) in zip(own, ((a, b, c), (b, a, c), (c, a, b)), strict=True):
            differences = (gap(name, one) - gap(two, one)) / 2, (gap(name, two) - gap(one, two)) / 2
            general = mean + (differences[0] + differences[1]) / 2
            found.append((table @ weights + weight * general) / (1 + weight))
        return torch.stack(found)

    for weight in (1.0, 0.5):
        expected = told(spread_weights(own) if weigh else equal, weight)
        expected += (told(equal, weight) - expected).mean(dim=0)
        found = gaps(signature, sources, kind, weigh=weigh, generality=weight)[0]
        for name, values in zip(NAMES, expected, strict=True):
            assert found[name].replicates == pytest.approx(values.tolist(), abs=1e-6)
            assert found[name].value == pytest.approx(values.mean().item(), abs=1e-6)


def test_two_sources_say_nothing_of_generality(library, signature):
    pair = dict(list(opened(library).items())[:2])
    assert gaps(signature, pair, generality=1.0) == gaps(signature, pair)


@pytest.mark.parametrize("kind", ["unit", "published"])
def test_formulas_without_units_know_no_generality(kind, library, signature):
    assert gaps(signature, opened(library), kind, generality=1.0) == gaps(signature, opened(library), kind)


def test_gaps_between_sources_are_kept_and_damage_does_no_harm(library, signature):
    first = GapEstimator(LADDER).estimate(about(library), NAMES)
    kept = {path.name: path.read_bytes() for path in Path(library.root, ".gaps").iterdir()}
    assert len(kept) == 3  # one for each source that the others are compared with
    assert GapEstimator(LADDER).estimate(about(library), NAMES) == first
    assert {path.name: path.read_bytes() for path in Path(library.root, ".gaps").iterdir()} == kept
    for path in Path(library.root, ".gaps").iterdir():
        path.write_bytes(b"damaged")
    assert GapEstimator(LADDER).estimate(about(library), NAMES) == first
    assert {path.name: path.read_bytes() for path in Path(library.root, ".gaps").iterdir()} == kept


def test_kept_gaps_are_taken_instead_of_signatures(library, signature):
    sources = opened(library)
    like = (LADDER, 64, "kernelwise")
    table = library_gaps(sources, *like, library.cache)
    for name in NAMES:
        for path in Path(library.root, name).glob("ladder-*"):
            path.unlink()
    assert torch.equal(library_gaps(sources, *like, library.cache).nan_to_num(9), table.nan_to_num(9))
    assert library_gaps(sources, *like, None) is None
    assert library_gaps(sources, LADDER, 64, "layerwise", library.cache) is None  # another formula was never measured


def test_nothing_is_kept_where_that_is_not_wanted_or_cannot_be(library):
    found = GapEstimator(LADDER).estimate(about(library, cache=False), NAMES)
    assert not Path(library.root, ".gaps").exists()
    Path(library.root, ".gaps").write_text("a file where the folder should be")
    assert GapEstimator(LADDER).estimate(about(library), NAMES) == found


def test_a_new_source_is_compared_and_the_others_are_not_again(library, signature):
    sources = opened(library)
    table = library_gaps(sources, LADDER, 64, "kernelwise", library.cache)
    add_source(library.root, "new", seed=13)
    for name in NAMES:  # the known gaps must come from what is kept
        assert not table[NAMES.index(name)].isnan().all()
    larger = library_gaps(opened(library), LADDER, 64, "kernelwise", library.cache)
    assert larger.shape[:2] == (4, 4)
    assert int(larger.isnan().all(dim=3).all(dim=2).sum()) == 4  # each to itself
    entries = {name: source.find(LADDER.recipe, 64) for name, source in opened(library).items()}
    order = sorted(entries, key=lambda name: entries[name].sha256)
    old = sorted(NAMES, key=lambda name: entries[name].sha256)
    for row, name in enumerate(NAMES):
        for column, other in enumerate(old):
            known = table[row, column].nan_to_num(9)
            assert torch.equal(larger[sorted(entries).index(name), order.index(other)].nan_to_num(9), known)


def test_many_sources_are_compared_with_the_same_few(library, signature, monkeypatch):
    monkeypatch.setattr("pge_lightning.estimators.library_gaps.REFERENCES", 2)
    table = library_gaps(opened(library), LADDER, 64, "kernelwise", library.cache)
    assert table.shape[:2] == (3, 2)
    assert int(table.isnan().all(dim=3).all(dim=2).sum()) == 2


def test_a_damaged_signature_takes_nothing_from_the_other_pairs(library, signature):
    sound = library_gaps(opened(library), LADDER, 64, "kernelwise", None)
    (path,) = Path(library.root, "a-far").glob("ladder-64-*")
    path.write_bytes(b"damaged")
    table = library_gaps(opened(library), LADDER, 64, "kernelwise", None)
    there = (~table.isnan()).all(dim=3).all(dim=2)
    assert int(there.sum()) == 2  # the pair that is left, both ways
    assert torch.equal(table[there], sound[there])


def test_checkpoints_of_one_data_set_count_once_and_not_for_each_other(library, signature):
    sources = opened(library)
    table = library_gaps(sources, LADDER, 64, "kernelwise", None)
    add_source(library.root, "near-again", seed=TARGET_SEED)
    again = library_gaps(opened(library), LADDER, 64, "kernelwise", None)
    assert again.shape[:2] == (4, 3)
    rows = {name: again[index] for index, name in enumerate(sorted([*NAMES, "near-again"]))}
    assert torch.equal(rows["near"].nan_to_num(9), rows["near-again"].nan_to_num(9))
    assert torch.equal(rows["near"].nansum(dim=0), table[1].nansum(dim=0))
    found = gaps(signature, opened(library), generality=1.0)[0]
    assert found["near"].value == pytest.approx(found["near-again"].value, abs=1e-12)


def slow_library_gaps(library, references):
    """Pair by pair, from whole signatures."""
    entries = {name: library.open(name).find(LADDER.recipe, 64) for name in library.names()}
    stacks = {name: library.open(name).load_signature(entry).units for name, entry in entries.items()}

    def gap(one, other):
        return gaps_by_unit(stacks[one], stacks[other], "kernelwise")

    chosen = []
    for name in sorted(entries, key=lambda name: entries[name].sha256):
        if len(chosen) < references and all(gap(name, other).mean() >= 0.05 for other in chosen):
            chosen.append(name)
    nothing = torch.full_like(gap("near", "near"), torch.nan)
    table = [[gap(n, other) if gap(n, other).mean() >= 0.05 else nothing for other in chosen] for n in sorted(entries)]
    return torch.stack([torch.stack(row) for row in table])


@pytest.mark.parametrize("references", [1, 2, 3, 16])
def test_references_are_few_and_of_different_data_whatever_is_kept(references, library, monkeypatch):
    monkeypatch.setattr("pge_lightning.estimators.library_gaps.REFERENCES", references)
    library_gaps(opened(library), LADDER, 64, "kernelwise", library.cache)
    for number in range(3):
        add_source(library.root, f"more-{number}", seed=(TARGET_SEED, 11, 13)[number])
        expected = slow_library_gaps(library, references)
        for cache in (library.cache, library.cache, None):
            found = library_gaps(opened(library), LADDER, 64, "kernelwise", cache)
            assert found.shape == expected.shape
            assert torch.allclose(found, expected, rtol=0, atol=1e-6, equal_nan=True)


def test_sources_that_compare_although_not_all_is_alike_are_compared_by_their_signatures(library):
    source = library.open("near")
    stored = source.load_signature(source.find(LADDER.recipe, 64))
    file = library.put_signature("near", dataclasses.replace(stored, frozen={"head.weight": "f0"}))
    library.register("near", source.load_weights(), source.facts, [file], overwrite=True)
    for _ in range(2):
        found = library_gaps(opened(library), LADDER, 64, "kernelwise", library.cache)
        assert torch.allclose(found, slow_library_gaps(library, 16), rtol=0, atol=1e-6, equal_nan=True)
