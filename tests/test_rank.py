"""Rankings: order, ties, lines that failed, the table and the frame."""

import dataclasses
import json
import shutil

import pandas as pd
import pytest
import torch
from rich.console import Console

from pge_lightning.collect import Collector
from pge_lightning.encoder import encoder_state
from pge_lightning.errors import PGEError
from pge_lightning.estimators import Estimate, FactEstimator, GapEstimator, Target
from pge_lightning.estimators.estimator import tied
from pge_lightning.gap import KINDS, compare
from pge_lightning.library import Library
from pge_lightning.rank import RankedSource, Ranking, rank_sources, ranking_of
from trainer_helpers import LADDER, Net, add_source, failing, make_loader, plain_loss

# Three restarts of three steps cannot tell small data sets apart.
STEADY = dataclasses.replace(LADDER, restarts=8, steps=10)

NAMES = ["a-far", "near", "z-far"]
TARGET_SEED = 1


def about(library, samples=64):
    """The target; its data are those of the source 'near', with fewer samples."""
    return Target(Net(), make_loader(TARGET_SEED, samples), library, encoder="encoder", loss_fn=plain_loss)


def ranked(library, samples=64, **options):
    return rank_sources(about(library, samples), GapEstimator(STEADY, **options))


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    for name, seed in zip(NAMES, (11, TARGET_SEED, 12), strict=True):
        add_source(folder, name, seed=seed, budgets=(64,), probe=STEADY)
    ranked(Library(folder))  # so that the target's signature is there
    return folder


@pytest.fixture
def library(collected, tmp_path):
    return Library(shutil.copytree(collected, tmp_path, dirs_exist_ok=True))


def text_of(ranking, width=200):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(ranking)
    return capture.get()


def test_sources_stand_in_the_order_of_their_estimates(library):
    target = about(library)
    ranking = rank_sources(target, GapEstimator(STEADY, "layerwise", weigh=False, generality=0.0))
    values = [line.estimate.value for line in ranking.sources]
    assert values == sorted(values)
    assert ranking.best.name == "near"
    assert {line.status for line in ranking.sources} == {"ok"}
    assert (ranking.estimator, ranking.higher_is_better) == ("gap", False)
    assert ranking.details == {
        "gap": {
            "kind": "layerwise",
            "weighed": False,
            "probe": "ladder",
            "budget": 64,
            "rung": 64,
            "generality": 0.0,
            "noise_floor": None,
        }
    }
    for line in ranking.sources:
        source = library.open(line.name)
        gap = compare(source.load_signature(source.signatures[0]), target.signature(STEADY), "layerwise")
        # Rankings compare directions in single precision.
        found = (line.estimate.value, line.estimate.standard_error, line.estimate.low, line.estimate.high)
        assert found == pytest.approx((gap.value, gap.standard_error, gap.low, gap.high), abs=1e-6)
        assert line.estimate.replicates == pytest.approx(gap.per_restart, abs=1e-6)
        assert line.facts == source.facts


def test_where_higher_is_better_the_largest_stands_on_top(library):
    ranking = rank_sources(about(library), FactEstimator("source_metric"))
    assert [(line.name, line.estimate.value) for line in ranking.sources] == [
        ("z-far", pytest.approx(0.62)),
        ("a-far", pytest.approx(0.61)),
        ("near", pytest.approx(0.51)),
    ]
    assert ranking.scores() == {line.name: line.estimate.value for line in ranking.sources}
    assert "larger is better" in text_of(ranking)


def test_scores_are_higher_for_better_sources(library):
    ranking = ranked(library)
    assert ranking.scores() == {line.name: -line.estimate.value for line in ranking.sources}
    assert list(ranking.scores()) == [line.name for line in ranking.sources]


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_does_not_depend_on_that_of_the_lines(kind, library):
    forth = ranked(library, kind=kind)
    lines = [dataclasses.replace(line, tied=False) for line in forth.sources]
    assert ranking_of(reversed(lines), "gap", False, forth.details) == forth
    assert forth.details["gap"]["kind"] == kind


def test_equal_estimates_stand_in_the_order_of_names(tmp_path):
    for name in ("b", "a", "c"):
        add_source(tmp_path, name, seed=11, budgets=(64,), probe=STEADY)
    ranking = ranked(Library(tmp_path))
    assert [line.name for line in ranking.sources] == ["a", "b", "c"]
    assert ranking.ties == ["b", "c"]
    assert not ranking.best.tied


def test_ties_come_from_paired_differences(library):
    ranking = ranked(library)
    best, *others = ranking.sources
    assert [line.tied for line in others] == [tied(line.estimate, best.estimate) for line in others]
    assert ranking.ties == [line.name for line in others if line.tied]
    # A target that equals one source in every restart leaves no doubt about sources that are far in every restart.
    certain = ranked(library, samples=128, generality=0.0)
    assert certain.best.estimate.value == pytest.approx(0, abs=1e-6)
    assert certain.ties == []


def _line(name, value, error=0.0, status="ok"):
    return RankedSource(name, status, estimate=Estimate(value, error))


def test_a_source_that_was_not_opened_is_tied_with_none():
    ranking = ranking_of([_line("a", 1.0, 0.5), _line("b", 0.9, 0.5), _line("c", 0.8, 0.5, "not opened")], "x", True)
    assert ranking.ties == ["b"]
    assert "not opened" in text_of(ranking)


def test_without_the_best_source_ties_are_those_with_the_next():
    ranking = ranking_of([_line("a", 2.0), _line("b", 0.9, 0.1), _line("c", 0.8, 0.1)], "x", True, {"x": {"n": 1}}, "n")
    assert ranking.ties == []
    left = ranking.without("a", "its weights are damaged")
    assert [line.name for line in left.sources] == ["b", "c", "a"]
    assert left.ties == ["c"]
    assert failing(left.sources[-1], "^its weights are damaged$")
    assert (left.details, left.notes, left.estimator, left.higher_is_better) == ({"x": {"n": 1}}, ("n",), "x", True)


def _each_file(library, name):
    source = library.open(name)
    return [library.root + f"/{name}/{entry.file}" for entry in source.signatures]


def _truncate(library, name):
    shutil.rmtree(f"{library.root}/.directions", ignore_errors=True)  # what is kept would stand in for the signature
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
def test_a_source_that_cannot_be_compared_fails_alone(kind, library):
    sound = ranked(library)
    add_source(library.root, "broken", seed=TARGET_SEED, budgets=(64,), probe=STEADY)
    damage, reason = DAMAGES[kind]
    damage(library, "broken")
    ranking = ranked(library)
    assert ranking.sources[:-1] == sound.sources
    assert ranking.sources[-1].name == "broken"
    assert failing(ranking.sources[-1], reason), ranking.sources[-1].reason
    table = text_of(ranking)
    assert "broken failed: " in table
    assert ranking.to_pandas()["status"].tolist() == ["ok", "ok", "ok", "failed"]


def test_if_every_source_failed_there_is_no_best_one(library):
    for name in NAMES:
        _truncate(library, name)
    ranking = ranked(library)
    with pytest.raises(PGEError, match=r"all 3 failed.*a-far: .*SHA-256"):
        ranking.best  # ruff: ignore[useless-expression]
    assert ranking.ties == []
    assert ranking.scores() == {}
    assert ranking.to_pandas()["rank"].isna().all()
    with pytest.raises(PGEError, match="all 0 failed"):
        Ranking((), "gap", False).best  # ruff: ignore[useless-expression]


def test_if_no_source_can_be_opened_the_estimator_is_not_asked(library):
    for name in NAMES:
        _write_json(lambda content: content[:40])(library, name)
    ranking = ranked(library)
    assert [line.name for line in ranking.sources] == NAMES
    assert all(failing(line, "damaged") for line in ranking.sources)
    assert ranking.details == {}
    assert not {line.facts for line in ranking.sources} - {None}


def test_rankings_of_one_target_do_not_depend_on_each_other(library):
    target = about(library)
    first = rank_sources(target, GapEstimator(STEADY, floor=True))
    size = rank_sources(target, FactEstimator("source_size"))
    assert (size.columns, size.details, size.notes) == ([], {}, ())
    assert rank_sources(target, GapEstimator(STEADY, floor=True)) == first


class Raises:
    """Fails for one source with an error of another kind than the library's own."""

    name, higher_is_better, needs, cost = "raises", True, frozenset(), "nothing"

    def estimate(self, target, sources):
        return {name: ZeroDivisionError("by\nzero") if name == "near" else Estimate(1.0) for name in sources}


def test_an_error_of_another_kind_is_named(library):
    ranking = rank_sources(about(library), Raises())
    assert failing(ranking.sources[-1], "^ZeroDivisionError: by zero$")
    assert ranking.sources[-1].facts == library.open("near").facts


class Beside:
    """Ranks by one estimator, and asks another one, too."""

    def __init__(self, estimator, other):
        self.estimator, self.other = estimator, other
        self.name, self.higher_is_better = estimator.name, estimator.higher_is_better
        self.needs, self.cost = estimator.needs, estimator.cost

    def estimate(self, target, sources):
        target.judge(self.other, sources)
        return self.estimator.estimate(target, sources)


FLOATS = ["gap", "standard_error", "low", "high", "source_size", "value"]


@pytest.mark.parametrize("damaged", [0, 1, 3])
def test_the_frame_has_the_same_columns_and_types_whatever_failed(damaged, library):
    for name in NAMES[:damaged]:
        _truncate(library, name)
    ranking = rank_sources(about(library), Beside(GapEstimator(STEADY), FactEstimator("source_size")))
    frame = ranking.to_pandas()
    assert list(frame) == [
        *("rank", "source", "gap", "standard_error", "low", "high", "tied", "source_size"),
        *("classes", "samples", "metric", "value", "status", "reason"),
    ]
    types = frame.dtypes.astype(str)
    assert types[["rank", "classes", "samples"]].tolist() == ["Int64"] * 3
    assert types[FLOATS].tolist() == ["float64"] * 6
    assert types["tied"] == "bool"
    assert frame["source"].tolist() == [line.name for line in ranking.sources]
    sound = 3 - damaged
    assert frame["rank"].tolist()[:sound] == list(range(1, sound + 1))
    assert frame["rank"].isna().sum() == frame["gap"].isna().sum() == damaged
    for line, row in zip(ranking.sources[:sound], frame.to_dict("records"), strict=False):
        estimate = line.estimate
        assert (row["gap"], row["low"], row["high"]) == (estimate.value, estimate.low, estimate.high)
        assert row["standard_error"] == estimate.standard_error
        assert (row["classes"], row["samples"], row["metric"]) == (3, 128, "val_acc")
        assert row["source_size"] == 128


def test_everything_can_be_written_as_json(library):
    _truncate(library, "z-far")
    ranking = rank_sources(about(library), Beside(GapEstimator(STEADY, floor=True), FactEstimator("source_size")))
    content = json.loads(json.dumps(ranking.to_dict()))
    assert (content["estimator"], content["higher_is_better"]) == ("gap", False)
    assert content["details"]["gap"] == ranking.details["gap"]
    assert content["details"]["gap"]["noise_floor"] > 0
    assert content["notes"] == list(ranking.notes)
    assert [row["source"] for row in content["sources"]] == [line.name for line in ranking.sources]
    for line, row in zip(ranking.sources[:-1], content["sources"], strict=False):
        assert row["gap"] == pytest.approx(line.estimate.value)
        assert row["source_size"] == 128
    assert content["sources"][-1]["gap"] is None
    assert set(content["sources"][0]) == set(ranking.to_pandas())


def test_an_empty_ranking_still_has_a_frame_and_a_table():
    ranking = Ranking((), "linear_probe", True)
    assert len(ranking.to_pandas()) == 0
    assert "rank" in ranking.to_pandas()
    assert "linear_probe" in text_of(ranking)
    assert ranking.to_dict()["sources"] == []


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_shows_rank_name_and_estimate_at_every_width(width, library):
    add_source(library.root, "a-source-with-a-really-long-name", seed=13, budgets=(64,), probe=STEADY)
    _truncate(library, "z-far")
    ranking = rank_sources(about(library), Beside(GapEstimator(STEADY, floor=True), FactEstimator("source_metric")))
    text = text_of(ranking, width)
    flat = "".join(text.split())
    for line in ranking.sources[:-1]:
        assert f"{line.estimate.value:.4f}" in text
        assert f"{line.columns['source_metric']:.3f}" in text
    assert "near" in text
    assert "64" in flat
    assert "Noisefloorofgapat32samples" in flat
    assert "smallerisbetter" in flat
    assert all(len(line) <= width for line in text.splitlines())
    if width == 200:
        for line in ranking.sources:
            assert line.name in text
        assert "gap, smaller is better (kernelwise, weighed, probe 'ladder', 64 samples)" in text
        assert "z-far failed: Expected" in text
        assert "val_acc 0.61" in text


def test_the_table_shows_what_is_unknown_as_a_dash(library):
    facts = dataclasses.replace(library.open("near").facts, classes=None, metric=None, value=None)
    source = library.open("near")
    files = [entry.file for entry in source.signatures]
    library.register("near", source.load_weights(), facts, files, overwrite=True)
    ranking = rank_sources(about(library), Beside(GapEstimator(STEADY), FactEstimator("source_metric")))
    row = next(line for line in text_of(ranking).splitlines() if "near" in line)
    assert row.split()[-5:] == ["-", "-", "128", "-", "ok"]
    assert pd.isna(ranking.to_pandas()["classes"][0])
    assert pd.isna(ranking.to_pandas()["source_metric"][0])


def test_a_note_that_comes_twice_is_kept_once():
    ranking = ranking_of([_line("a", 1.0)], "x", True, notes=["first", "second", "first"])
    assert ranking.notes == ("first", "second")
    assert text_of(ranking).count("first") == 1


@pytest.mark.parametrize("failed", [0, 60])
def test_of_many_sources_the_first_are_printed(failed):
    lines = [RankedSource(f"source{number:03}", "ok", estimate=Estimate(float(number))) for number in range(60)]
    lines += [RankedSource(f"broken{number}", "failed", "a reason") for number in range(failed)]
    ranking = ranking_of(lines, "gap", False)
    text = text_of(ranking)
    assert all(f"source{number:03}" in text for number in range(50))
    assert "source050" not in text
    assert text.count("a reason") == min(failed, 50)
    assert f"Printed are 50 of {60 + failed} sources; `to_pandas()` holds all." in text
    assert len(ranking.to_pandas()) == 60 + failed
