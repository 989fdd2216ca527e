"""The default estimator: what it is made of, in the shell and in code, and what it opens."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from hydra import compose, initialize_config_module

from feature_sources import put, trained
from pge_lightning.app.build import build_estimator
from pge_lightning.estimators import (
    GapEstimator,
    both_gaps,
    combined,
    default_estimator,
    frozen_estimator,
    gap_and_history,
)
from pge_lightning.library import Library
from pge_lightning.probe import PROBES
from pge_lightning.record import Record
from pge_lightning.select import SourceSelector
from trainer_helpers import LADDER, Net, make_loader

NAMES = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    library = Library(tmp_path_factory.mktemp("library"))
    for seed, name in enumerate(NAMES):
        put(library, name, trained(seed), data=seed)
    return library


def forget(library):
    for path in Path(library.root, ".records").iterdir():
        path.unlink()


@pytest.fixture
def history(library):
    """Records of three other targets, gone after the test."""
    for target in ("x", "y", "z"):
        for place, name in enumerate(NAMES):
            library.add_record(Record(name, target, "acc", 0.5 + 0.1 * place, seed=0))
    yield
    forget(library)


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("default", default_estimator),
        ("combined", combined),
        ("gap_and_history", gap_and_history),
        ("both_gaps", both_gaps),
        ("frozen", frozen_estimator),
    ],
)
def test_the_shell_and_the_code_have_one_default(selector, expected):
    with initialize_config_module("pge_lightning.conf", version_base="1.3"):
        cfg = compose("pge", overrides=[f"selector={selector}"])
        assert build_estimator(cfg.selector) == expected()
        if selector == "default":
            assert compose("pge").selector == cfg.selector


def test_a_selector_without_a_probe_takes_the_default(library):
    assert SourceSelector(library).estimator == default_estimator()
    assert SourceSelector(library, probe=LADDER).estimator == GapEstimator(LADDER)
    with pytest.raises(ValueError, match="both"):
        SourceSelector(library, GapEstimator(), probe=LADDER)


def test_both_gaps_take_no_more_restarts_of_a_target_than_a_ranking_needs():
    gap, label_free = (member.probes[0] for member in both_gaps().members.values())
    assert gap.of_target == replace(PROBES["default"].of_target, restarts=8)
    assert gap.recipe == PROBES["default"].recipe
    assert label_free == PROBES["label_free"]
    few, alike = replace(gap, restarts=5, target=replace(gap.target, restarts=None)), replace(gap, target=None)
    for probe in (few, alike):
        assert both_gaps(probe).probes[0] is probe
    assert both_gaps().needs == {"inputs", "labels", "signatures"}  # no weights and no records


def test_without_records_and_label_free_signatures_the_rest_ranks(library):
    ranking = SourceSelector(library, default_estimator(LADDER), cache=False, verbose=False).rank(Net(), make_loader(2))
    assert {line.status for line in ranking.sources} == {"ok"}  # four are so few that all are opened
    assert any(note.startswith("Left out label_free") for note in ranking.notes)
    assert set(ranking.columns) >= {"gap", "gap_and_history", "combined", "linear_probe", "log_me"}


def test_for_a_frozen_encoder_features_alone_rank(library, history):
    # What whole models gave says nothing of heads.
    ranking = SourceSelector(library, frozen_estimator(), cache=False, verbose=False).rank(Net(), make_loader(2))
    assert {line.status for line in ranking.sources} == {"ok"}
    assert set(ranking.columns) == {"pactran", "gaussian_bhattacharyya"}
    spread = {name: [line.columns[name] for line in ranking.sources] for name in ranking.columns}
    for line in ranking.sources:
        votes = [(line.columns[name] - fmean(spread[name])) / pstdev(spread[name]) for name in ranking.columns]
        assert line.estimate.value == pytest.approx(sum(votes))


def test_history_has_its_say(library, history):
    def rank():
        selector = SourceSelector(library, gap_and_history(LADDER), cache=False, verbose=False)
        return {line.name: line for line in selector.rank(Net(), make_loader(9)).sources}

    lines = rank()
    standing = {name: line.columns["standing"] for name, line in lines.items()}
    assert sorted(standing, key=standing.get) == NAMES
    forget(library)
    without = rank()
    gained = {name: line.estimate.value - without[name].estimate.value for name, line in lines.items()}
    assert sorted(gained, key=gained.get) == NAMES
