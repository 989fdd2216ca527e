"""Rankings: order, ties, lines that failed, the table and the frame, the noise floor."""

import dataclasses
import json
import math
import shutil

import pandas as pd
import pytest
import torch
from rich.console import Console

from pge_lightning.collect import Collector
from pge_lightning.encoder import encoder_state
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.functional import gaps_by_unit, spread_weights
from pge_lightning.gap import KINDS, compare, tied
from pge_lightning.library import Library
from pge_lightning.rank import Ranking, noise_floor, rank_sources
from pge_lightning.samples.pool import draw
from trainer_helpers import LADDER, TINY, Net, add_source, failing, make_loader, plain_loss

# Three restarts of three steps cannot tell small data sets apart.
STEADY = dataclasses.replace(LADDER, restarts=8, steps=10)

NAMES = ["a-far", "near", "z-far"]
TARGET_SEED = 1


@pytest.fixture(scope="module")
def target():
    """The target's signature; its data are those of the source 'near', with fewer samples."""
    collector = Collector(Net(), make_loader(TARGET_SEED, 64), probe=STEADY, loss_fn=plain_loss, encoder="encoder")
    return collector.collect(64)


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    for name, seed in zip(NAMES, (11, TARGET_SEED, 12), strict=True):
        add_source(folder, name, seed=seed, budgets=(64,), probe=STEADY)
    return folder


@pytest.fixture
def library(collected, tmp_path):
    return Library(shutil.copytree(collected, tmp_path, dirs_exist_ok=True))


def opened(library):
    found = {}
    for name in library.names():
        try:
            found[name] = library.open(name)
        except ArtifactError as error:
            found[name] = error
    return found


def text_of(ranking, width=200):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(ranking)
    return capture.get()


def test_sources_stand_in_the_order_of_their_gaps(library, target):
    ranking = rank_sources(target, opened(library), weigh=False)
    assert not ranking.weighed
    values = [line.gap.value for line in ranking.sources]
    assert values == sorted(values)
    assert ranking.best.name == "near"
    assert {line.status for line in ranking.sources} == {"ok"}
    assert (ranking.probe, ranking.budget, ranking.noise_floor) == ("ladder", 64, None)
    assert ranking.kind == ranking.best.gap.kind
    for line in ranking.sources:
        source = library.open(line.name)
        assert line.gap == compare(source.load_signature(source.signatures[0]), target)
        assert line.facts == source.facts


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_does_not_depend_on_that_of_the_library(kind, library, target):
    sources = opened(library)
    forth = rank_sources(target, sources, kind)
    back = rank_sources(target, dict(reversed(sources.items())), kind)
    assert forth == back
    assert forth.kind == forth.best.gap.kind == kind


def test_equal_gaps_stand_in_the_order_of_names(tmp_path, target):
    for name in ("b", "a", "c"):
        add_source(tmp_path, name, seed=11, budgets=(64,), probe=STEADY)
    ranking = rank_sources(target, opened(Library(tmp_path)))
    assert [line.name for line in ranking.sources] == ["a", "b", "c"]
    assert ranking.ties == ["b", "c"]
    assert not ranking.best.tied


def test_ties_come_from_paired_differences(library, target):
    ranking = rank_sources(target, opened(library))
    best, *others = ranking.sources
    assert [line.tied for line in others] == [tied(line.gap, best.gap) for line in others]
    assert ranking.ties == [line.name for line in others if line.tied]
    # A target that equals one source in every restart leaves no doubt about sources that are far in every restart.
    source = library.open("near")
    own = source.load_signature(source.signatures[0])
    certain = rank_sources(own, opened(library))
    assert certain.best.gap.value == pytest.approx(0, abs=1e-6)
    assert certain.ties == []


def _each_file(library, name):
    source = library.open(name)
    return [library.root + f"/{name}/{entry.file}" for entry in source.signatures]


def _truncate(library, name):
    for path in _each_file(library, name):
        with open(path, "r+b") as file:
            file.truncate(500)


def _flip_a_bit(library, name):
    for path in _each_file(library, name):
        with open(path, "r+b") as file:
            file.seek(-1, 2)
            last = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([last ^ 1]))


def _write_json(change):
    def damage(library, name):
        path = f"{library.root}/{name}/source.json"
        with open(path) as file:
            content = file.read()
        with open(path, "w") as file:
            file.write(change(content))

    return damage


def _again(library, name, signature, module=None):
    """Register a source anew, with another signature."""
    old = library.open(name)
    weights = encoder_state(module, "encoder") if module else old.load_weights()
    library.register(name, weights, old.facts, [library.put_signature(name, signature)], overwrite=True)


def _collected(probe=STEADY, **options):
    torch.manual_seed(0)
    collector = Collector(
        Net(**options), make_loader(TARGET_SEED, 64), probe=probe, loss_fn=plain_loss, encoder="encoder"
    )
    return collector.collect(64)


def _change_a_start(library, name):
    source = library.open(name)
    signature = source.load_signature(source.signatures[0])
    starts = {**signature.starts, "encoder.1.bias": ("0" * 16, *signature.starts["encoder.1.bias"][1:])}
    _again(library, name, dataclasses.replace(signature, starts=starts))


def _zero(library, name):
    source = library.open(name)
    signature = source.load_signature(source.signatures[0])
    _again(library, name, dataclasses.replace(signature, units={n: 0 * u for n, u in signature.units.items()}))


DAMAGES = {
    "truncated": (_truncate, "SHA-256"),
    "one bit": (_flip_a_bit, "SHA-256"),
    "foreign": (_write_json(lambda content: '{"name": "something else"}'), "foreign or damaged"),
    "not JSON": (_write_json(lambda content: content[:40]), "damaged"),
    "newer schema": (_write_json(lambda content: json.dumps({**json.loads(content), "schema": 99})), "Upgrade"),
    "other architecture": (lambda library, name: _again(library, name, _collected(width=12)), "one shape"),
    "other probe": (
        lambda library, name: _again(library, name, _collected(dataclasses.replace(STEADY, name="slow", lr=1e-4))),
        "'slow' at 64",
    ),
    "changed start": (_change_a_start, "'encoder.1.bias' started from other values"),
    "no signature": (
        lambda library, name: library.register(
            name, library.open(name).load_weights(), library.open(name).facts, [], overwrite=True
        ),
        "it has none",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_source_that_cannot_be_compared_fails_alone(kind, library, target):
    sound = rank_sources(target, opened(library))
    add_source(library.root, "broken", seed=TARGET_SEED, budgets=(64,), probe=STEADY)
    damage, reason = DAMAGES[kind]
    damage(library, "broken")
    ranking = rank_sources(target, opened(library))
    assert ranking.sources[:-1] == sound.sources
    assert ranking.sources[-1].name == "broken"
    assert failing(ranking.sources[-1], reason), ranking.sources[-1].reason
    table = text_of(ranking)
    assert "broken failed: " in table
    assert ranking.to_pandas()["status"].tolist() == ["ok", "ok", "ok", "failed"]


@pytest.mark.parametrize("kind", ["kernelwise", "layerwise"])
def test_weighed_gaps_rank_by_the_mean_of_what_units_say(kind, library, target):
    signatures = {}
    for name in library.names():
        source = library.open(name)
        signatures[name] = source.load_signature(source.signatures[0])
    gaps = torch.stack([gaps_by_unit(signature.units, target.units, kind) for signature in signatures.values()])
    means = gaps.mean(dim=1)
    standardised = ((means - means.mean(dim=0)) / means.std(dim=0)).mean(dim=1)
    ranking = rank_sources(target, opened(library), kind, halves=(target, target))
    names = [name for _, name in sorted(zip(standardised.tolist(), signatures, strict=True))]
    assert [line.name for line in ranking.sources] == names
    assert ranking.weighed
    assert not ranking.noise_floor.value
    weights = spread_weights(gaps)
    for line in ranking.sources:
        expected = gaps[list(signatures).index(line.name)] @ weights
        assert line.gap.per_restart == pytest.approx(expected.tolist(), rel=1e-12)


def test_two_sources_are_too_few_to_weigh(library, target):
    pair = dict(list(opened(library).items())[:2])
    assert rank_sources(target, pair) == rank_sources(target, pair, weigh=False)


def test_a_gradient_of_length_zero_never_stops_the_ranking(library, target):
    sound = rank_sources(target, opened(library), "unit")
    _zero(library, "a-far")
    ranking = rank_sources(target, opened(library), "unit")
    assert [line for line in ranking.sources if line.name != "a-far"] == [
        line for line in sound.sources if line.name != "a-far"
    ]
    assert failing(ranking.sources[-1], "zero")


def test_if_every_source_failed_there_is_no_best_one(library, target):
    for name in NAMES:
        _truncate(library, name)
    ranking = rank_sources(target, opened(library))
    with pytest.raises(PGEError, match=r"all 3 failed.*a-far: .*SHA-256"):
        ranking.best  # ruff: ignore[useless-expression]
    assert ranking.ties == []
    assert ranking.to_pandas()["rank"].isna().all()
    with pytest.raises(PGEError, match="all 0 failed"):
        Ranking((), "layerwise", "ladder", 64).best  # ruff: ignore[useless-expression]


FLOATS = ["gap", "standard_error", "low", "high", "value"]


@pytest.mark.parametrize("damaged", [0, 1, 3])
def test_the_frame_has_the_same_columns_and_types_whatever_failed(damaged, library, target):
    for name in NAMES[:damaged]:
        _truncate(library, name)
    ranking = rank_sources(target, opened(library))
    frame = ranking.to_pandas()
    assert list(frame) == [
        *("rank", "source", "gap", "standard_error", "low", "high", "tied", "classes", "samples", "metric", "value"),
        *("status", "reason"),
    ]
    types = frame.dtypes.astype(str)
    assert types[["rank", "classes", "samples"]].tolist() == ["Int64"] * 3
    assert types[FLOATS].tolist() == ["float64"] * 5
    assert types["tied"] == "bool"
    assert frame["source"].tolist() == [line.name for line in ranking.sources]
    sound = 3 - damaged
    assert frame["rank"].tolist()[:sound] == list(range(1, sound + 1))
    assert frame["rank"].isna().sum() == frame["gap"].isna().sum() == damaged
    for line, row in zip(ranking.sources[:sound], frame.to_dict("records"), strict=False):
        assert (row["gap"], row["low"], row["high"]) == (line.gap.value, line.gap.low, line.gap.high)
        assert (row["classes"], row["samples"], row["metric"]) == (3, 128, "val_acc")


def test_an_empty_ranking_still_has_a_frame_and_a_table():
    ranking = Ranking((), "layerwise", "ladder", 64)
    assert len(ranking.to_pandas()) == 0
    assert "rank" in ranking.to_pandas()
    assert "layerwise" in text_of(ranking)


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_shows_rank_name_and_gap_at_every_width(width, library, target):
    add_source(library.root, "a-source-with-a-really-long-name", seed=13, budgets=(64,), probe=STEADY)
    _truncate(library, "z-far")
    ranking = rank_sources(target, opened(library), halves=(target, target))
    text = text_of(ranking, width)
    flat = "".join(text.split())
    for line in ranking.sources[:-1]:
        assert f"{line.gap.value:.4f}" in text
    assert "near" in text
    assert "64" in flat
    assert "noisefloorat64samples" in flat
    assert all(len(line) <= width for line in text.splitlines())
    if width == 200:
        for line in ranking.sources:
            assert line.name in text
        assert "z-far failed: Expected" in text
        assert "val_acc 0.61" in text


def test_the_table_shows_what_is_unknown_as_a_dash(library, target):
    facts = dataclasses.replace(library.open("near").facts, classes=None, metric=None, value=None)
    source = library.open("near")
    files = [entry.file for entry in source.signatures]
    library.register("near", source.load_weights(), facts, files, overwrite=True)
    row = next(line for line in text_of(rank_sources(target, opened(library))).splitlines() if "near" in line)
    assert row.split()[-4:] == ["-", "128", "-", "ok"]
    assert pd.isna(rank_sources(target, opened(library)).to_pandas()["classes"][0])


def _floor(samples, probe=LADDER, **options):
    collector = Collector(Net(), make_loader(TARGET_SEED, samples), probe=probe, loss_fn=plain_loss, encoder="encoder")
    return collector, noise_floor(collector, **options)


@pytest.mark.parametrize(("samples", "budget"), [(128, 64), (100, 32), (64, 32), (30, 15)])
def test_the_noise_floor_compares_two_halves_at_the_largest_rung_they_fill(samples, budget):
    collector, floor = _floor(samples)
    assert floor.budget == budget
    assert 0 < floor.value < 2
    assert math.isfinite(floor.standard_error)
    assert floor == _floor(samples)[1]
    assert len(collector.pool) == samples


def test_the_halves_are_disjoint_and_of_equal_size():
    collector = Collector(Net(), make_loader(samples=65), probe=LADDER, loss_fn=plain_loss, encoder="encoder")
    parts, part = [], collector.part

    def noting(indices):
        parts.append(set(indices))
        return part(indices)

    collector.part = noting
    noise_floor(collector, "unit")
    assert [len(indices) for indices in parts] == [32, 32]
    assert not parts[0] & parts[1]
    assert {i for batch in draw(32, 32, LADDER, 0) for i in batch} <= set(range(32))


def test_a_noise_floor_needs_two_halves_of_a_batch():
    with pytest.raises(PGEError, match="two halves of at least 8 samples each, but got 15"):
        _floor(15, dataclasses.replace(TINY, budgets=(8,)))
