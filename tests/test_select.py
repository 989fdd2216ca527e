"""Selecting a source before fine-tuning: what is loaded, what is left alone, which rung, and what is kept."""

import dataclasses
import shutil
import threading
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pge_lightning.encoder import encoder_state
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.estimators import FactEstimator, GapEstimator, RandomOrder
from pge_lightning.estimators.default import default_estimator
from pge_lightning.gap import KINDS, compare
from pge_lightning.library import Library
from pge_lightning.probe import PROBES
from pge_lightning.select import SourceSelector
from trainer_helpers import (
    LADDER,
    AugmentingData,
    Data,
    Net,
    add_source,
    failing,
    fit,
    frozen,
    generators,
    make_data,
    make_loader,
    module_state,
    plain_loss,
    randomness,
)


def selector(folder, probe=LADDER, kind="kernelwise", budget=None, floor=False, **options):
    gap = GapEstimator(probe, kind=kind, budget=budget, floor=floor)
    return SourceSelector(folder, gap, **{"verbose": False, **options})


def rung(ranking):
    return ranking.details["gap"]["budget"]


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A source with the target's rule and one with another, both with all rungs."""
    folder = tmp_path_factory.mktemp("library")
    for name, seed in (("far", 5), ("near", 0)):
        add_source(folder, name, seed=seed)
    return folder


@pytest.fixture
def library(collected, tmp_path):
    return Path(shutil.copytree(collected, tmp_path / "library"))


class Counting:
    """A loss that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, module, batch):
        self.calls += 1
        return plain_loss(module, batch)


def test_two_calls_select_and_then_train(library):
    module, data = Net(), Data()
    seen = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(frozen(encoder_state(pl_module, "encoder")))

    selection = selector(library).select(module, data)
    fit(module, data, [Watch()])
    assert selection.source == selection.ranking.best.name == "near"
    assert seen[0] == frozen(Library(library).open("near").load_weights())
    assert seen[-1] != seen[0]


def test_the_report_says_what_was_loaded_and_left(library):
    module = Net()
    head = frozen(dict(module.head.named_parameters()))
    report = selector(library).select(module, make_loader()).report
    state = encoder_state(module, "encoder")
    assert set(report.loaded) == state.keys()
    assert report.left == ("head.weight", "head.bias")
    assert report.skipped == {}
    assert frozen(dict(module.head.named_parameters())) == head
    assert str(report) == "loaded 9 tensors, left 2 (head.weight, head.bias)"


@pytest.mark.parametrize("data", [Data, AugmentingData, make_loader, lambda: list(make_loader())])
def test_ranking_changes_nothing(data, library):
    torch.manual_seed(0)
    module, data = Net(), data()
    before = frozen({**module_state(module), "randomness": randomness(), "generators": generators(data)})
    attributes = dict(vars(data)) if isinstance(data, Data) else {}
    ranking = selector(library, floor=True).rank(module, data)
    after = frozen({**module_state(module), "randomness": randomness(), "generators": generators(data)})
    assert after == before
    if attributes:
        assert vars(data) == attributes
        assert data.called == []
    assert {line.name for line in ranking.sources} == {"near", "far"}
    assert "Noise floor of gap at 32 samples" in ranking.notes[0]
    assert ranking.details["gap"]["noise_floor"] > 0


def test_a_data_module_that_a_trainer_used_before_is_welcome(library):
    class Locked(Callback):
        lock = None

        def setup(self, trainer, pl_module, stage):
            self.lock = threading.Lock()  # cannot be copied

    data = Data()
    trainer = fit(Net(), data, [Locked()])
    assert selector(library).select(Net(), data).source == "near"
    assert data.trainer is trainer
    assert data.called == ["prepare_data", "setup fit"]


def test_a_data_module_and_its_loader_have_one_signature(library):
    first = selector(library, cache=False).rank(Net(), Data())
    second = selector(library, cache=False).rank(Net(), make_loader())
    assert first == second


def test_the_data_modules_transfer_hooks_take_part(library):
    plain = selector(library, cache=False).rank(Net(), Data())
    augmented = selector(library, cache=False).rank(Net(), AugmentingData())
    assert plain.best.estimate.value != augmented.best.estimate.value


def test_plain_pytorch_is_enough(tmp_path):
    def network():
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    for name, seed in (("far", 5), ("near", 0)):
        add_source(tmp_path, name, seed, module=network(), encoder="0")
    module = network()
    selection = selector(tmp_path, loss_fn=plain_loss, device="cpu").select(module, make_loader())
    assert selection.source == selection.ranking.best.name
    assert set(selection.report.loaded) == {"0.weight", "0.bias"}
    assert torch.equal(module[0].weight, Library(tmp_path).open(selection.source).load_weights()["0.weight"])
    with pytest.raises(PGEError, match="loss_fn"):
        selector(tmp_path).rank(module, make_loader())


# --- encoder


def test_by_default_the_longest_agreeing_set_of_units_is_the_encoder(library):
    add_source(library, "shallow", seed=0, encoder="encoder.0")
    add_source(library, "wide", seed=0, module=Net(width=12))
    ranking = selector(library).rank(Net(), make_loader())
    assert [line.name for line in ranking.sources] == ["near", "far", "shallow", "wide"]
    assert failing(ranking.sources[2], "one side only")
    assert failing(ranking.sources[3], "one shape")
    shallow = selector(library, encoder="encoder.0").rank(Net(), make_loader())
    assert [line.name for line in shallow.sources if line.status == "ok"] == ["shallow"]


def test_two_longest_sets_are_ambiguous(tmp_path):
    add_source(tmp_path, "first", encoder="encoder.0")
    add_source(tmp_path, "last", encoder="encoder.4")
    with pytest.raises(PGEError, match=r"2 sets of 2 agree.*encoder="):
        selector(tmp_path).rank(Net(), make_loader())
    assert selector(tmp_path, encoder="encoder.4").rank(Net(), make_loader()).best.name == "last"


def test_without_any_agreeing_source_there_is_a_ranking_but_no_best(tmp_path):
    add_source(tmp_path, "wide", module=Net(width=12))
    add_source(tmp_path, "wider", module=Net(width=16))
    module = Net()
    before = frozen(module_state(module))
    assert all(failing(line, "one shape") for line in selector(tmp_path).rank(module, make_loader()).sources)
    with pytest.raises(PGEError, match="all 2 failed"):
        selector(tmp_path).select(module, make_loader())
    assert frozen(module_state(module)) == before


# --- sources


def test_a_library_without_sources_is_an_error(tmp_path, library):
    with pytest.raises(PGEError, match="there are none"):
        selector(tmp_path / "nowhere").rank(Net(), make_loader())
    with pytest.raises(PGEError, match=r"excluded \['far', 'near'\]"):
        selector(library, exclude=["near", "far"]).rank(Net(), make_loader())


def test_sources_can_be_excluded(library):
    ranking = selector(library, exclude=["near"]).rank(Net(), make_loader())
    assert [line.name for line in ranking.sources] == ["far"]


def test_arguments_are_checked(library):
    with pytest.raises(ValueError, match="`kind`"):
        selector(library, kind="euclidean")
    with pytest.raises(ValueError, match="`probe`"):
        selector(library, probe="slow")
    with pytest.raises(ValueError, match="`probe`"):
        SourceSelector(library, probe="slow")
    with pytest.raises(ValueError, match="`estimator` or `probe`, but got both"):
        SourceSelector(library, FactEstimator(), probe="fast")
    assert selector(Library(library)).library.names() == ["far", "near"]


def test_a_best_source_with_damaged_weights_leaves_the_model_alone(library):
    (file,) = (library / "near").glob("encoder-*")
    file.write_bytes(file.read_bytes()[:-9])
    module = Net()
    before = frozen(module_state(module))
    with pytest.raises(ArtifactError, match="SHA-256"):
        selector(library).load(module, "near")
    assert frozen(module_state(module)) == before


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_ranks_and_says_so(kind, library):
    ranking = selector(library, kind=kind).rank(Net(), make_loader())
    assert ranking.details["gap"]["kind"] == kind
    target = SourceSelector(library, probe=LADDER, verbose=False).target(Net(), make_loader()).signature(LADDER)
    for line in ranking.sources:
        source = Library(library).open(line.name)
        signature = source.load_signature(source.find(LADDER.recipe, 64))
        assert line.estimate.value == pytest.approx(compare(signature, target, kind).value, abs=1e-6)


def test_the_ranking_is_printed_with_what_was_loaded(library, capsys):
    selector(library, verbose=True).select(Net(), make_loader())
    printed = capsys.readouterr().out
    for text in (
        "near",
        "far",
        "Sources by gap, smaller is better",
        "64 samples",
        "Source 'near': loaded 9 tensors, left 2",
    ):
        assert text in printed


def test_nothing_is_printed_if_not_asked_for(library, capsys):
    selector(library).select(Net(), make_loader())
    assert capsys.readouterr().out == ""


# --- estimators


def test_the_default_is_what_the_package_recommends_or_the_gap_of_a_given_probe(library):
    assert SourceSelector(library).estimator == default_estimator()
    assert SourceSelector(library, probe=LADDER).estimator == GapEstimator(LADDER)
    assert SourceSelector(library, probe="fast").estimator.probes == [PROBES["fast"]]


@pytest.mark.parametrize(
    ("estimator", "best"), [(FactEstimator("source_metric"), "far"), (RandomOrder(4), None), (RandomOrder(5), None)]
)
def test_the_estimator_decides_what_is_loaded(estimator, best, library):
    module = Net()
    selection = SourceSelector(library, estimator, verbose=False).select(module, make_loader())
    assert selection.source == selection.ranking.best.name == (best or selection.source)
    assert selection.ranking.estimator == estimator.name
    assert frozen(encoder_state(module, "encoder")) == frozen(Library(library).open(selection.source).load_weights())
    assert not (library / ".targets").exists()  # no signature was asked for


# --- rungs


@pytest.mark.parametrize(("samples", "largest"), [(128, 64), (64, 64), (63, 32), (20, 16)])
def test_the_rung_is_the_largest_that_the_target_fills(samples, largest, library):
    ranking = selector(library).rank(Net(), make_loader(samples=samples))
    assert rung(ranking) == largest
    assert {line.status for line in ranking.sources} == {"ok"}


def test_all_sources_must_hold_the_rung(library):
    add_source(library, "small", seed=7, budgets=(16,))
    ranking = selector(library).rank(Net(), make_loader())
    assert rung(ranking) == 16
    assert {line.status for line in ranking.sources} == {"ok"}
    assert rung(selector(library, exclude=["small"]).rank(Net(), make_loader())) == 64


def test_without_a_common_rung_the_largest_is_taken(library):
    add_source(library, "small", seed=7, budgets=(16,))
    add_source(library, "large", seed=8, budgets=(64,))
    ranking = selector(library).rank(Net(), make_loader())
    assert rung(ranking) == 64
    assert [line.status for line in ranking.sources] == ["ok"] * 3 + ["failed"]
    assert failing(ranking.sources[-1], "at 64 samples, but it has 'ladder' at 16")


def test_a_rung_can_be_named(library):
    assert rung(selector(library, budget=32).rank(Net(), make_loader())) == 32
    for budget in (20, 64):
        with pytest.raises(PGEError, match=rf"one of \[16, 32\], but got {budget}"):
            selector(library, budget=budget).rank(Net(), make_loader(samples=40))


@pytest.mark.parametrize("kind", ["truncated", "missing", "other architecture"])
def test_a_source_that_cannot_be_compared_does_not_decide_on_the_rung(kind, library):
    sound = selector(library).rank(Net(), make_loader())
    add_source(library, "broken", budgets=(16,), module=Net(width=12) if kind == "other architecture" else None)
    (file,) = (library / "broken").glob("ladder-16-*")
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:100])
    elif kind == "missing":
        file.unlink()
    ranking = selector(library).rank(Net(), make_loader())
    assert ranking.sources[:-1] == sound.sources
    assert rung(ranking) == rung(sound) == 64
    assert failing(ranking.sources[-1], "at 64 samples")


def test_a_probe_without_rungs_uses_all_samples(tmp_path):
    probe = dataclasses.replace(PROBES["published"], batch_size=8)
    for name, seed in (("far", 5), ("near", 0)):
        add_source(tmp_path, name, seed, probe=probe, samples=96)
    ranking = selector(tmp_path, probe=probe, kind="published").rank(Net(), make_loader(samples=72))
    assert (rung(ranking), ranking.details["gap"]["probe"], len(ranking.sources)) == (72, "published", 2)
    assert {line.status for line in ranking.sources} == {"ok"}


# --- the kept signature of the target


def test_the_targets_signature_is_kept_and_found_again(library):
    counting = Counting()
    first = selector(library, loss_fn=counting).rank(Net(), make_loader())
    assert counting.calls == LADDER.restarts * LADDER.steps
    again = selector(library, loss_fn=counting).rank(Net(), make_loader())
    assert counting.calls == LADDER.restarts * LADDER.steps
    assert again == first
    assert Library(library).names() == ["far", "near"]
    stored = [path.name for path in (library / ".targets").iterdir()]
    assert len(stored) == 1
    assert stored[0].startswith("ladder-64-")


def test_a_kept_signature_is_not_used_if_asked_not_to(library):
    counting = Counting()
    selector(library, loss_fn=counting, cache=False).rank(Net(), make_loader())
    assert not (library / ".targets").exists()
    for cache in (True, False):
        selector(library, loss_fn=counting, cache=cache).rank(Net(), make_loader())
    assert counting.calls == 3 * LADDER.restarts * LADDER.steps


class OtherStart(nn.Linear):
    def reset_parameters(self):
        super().reset_parameters()
        with torch.no_grad():
            self.weight.mul_(2)


def started_otherwise():
    module = Net()
    module.encoder[0] = OtherStart(6, 8)
    return module


CHANGES = {
    "data": {"data": lambda: make_loader(seed=3)},
    "one label": {"data": lambda: relabelled()},
    "fewer samples": {"data": lambda: make_loader(samples=65)},
    "probe": {"probe": dataclasses.replace(LADDER, lr=1e-2)},
    "starts": {"module": started_otherwise},
    "units": {"encoder": "encoder.0"},
}


def relabelled():
    x, y, number = make_data().tensors
    y = y.clone()
    y[0] = (y[0] + 1) % 3
    return DataLoader(TensorDataset(x, y, number), batch_size=16)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_kept_signature_is_not_used_for_anything_else(kind, library):
    change = {"data": make_loader, "probe": LADDER, "module": Net, "encoder": "encoder", **CHANGES[kind]}
    selector(library, loss_fn=plain_loss, encoder="encoder").rank(Net(), make_loader())
    add_source(library, "own", 0, probe=change["probe"], module=change["module"](), encoder=change["encoder"])
    results = []
    for cache in (True, False):
        counting = Counting()
        chosen = selector(library, loss_fn=counting, probe=change["probe"], encoder=change["encoder"], cache=cache)
        results.append(chosen.rank(change["module"](), change["data"]()))
        assert counting.calls == LADDER.restarts * LADDER.steps
    assert results[0] == results[1]
    assert "ok" in [line.status for line in results[0].sources]


def test_unpaired_signatures_are_kept_per_architecture(tmp_path):
    probe = dataclasses.replace(PROBES["published"], batch_size=8)
    for width in (8, 12):
        add_source(tmp_path / str(width), "source", probe=probe, module=Net(width=width))
        (tmp_path / ".shared").mkdir(exist_ok=True)
        (tmp_path / str(width) / ".targets").symlink_to(tmp_path / ".shared")
        ranking = selector(tmp_path / str(width), probe=probe, kind="published").rank(Net(width=width), make_loader())
        assert ranking.best.name == "source"


@pytest.mark.parametrize("content", [b"", b"foreign", None])
def test_a_damaged_kept_signature_is_collected_anew(content, library):
    first = selector(library).rank(Net(), make_loader())
    (kept,) = (library / ".targets").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-20] if content is None else content)
    assert selector(library).rank(Net(), make_loader()) == first
    signature = Library(library).cache.get_target(kept.stem)
    assert signature.samples == 64


def test_targets_come_back_bit_for_bit(library):
    collected = Library(library).open("near")
    signature = collected.load_signature(collected.signatures[0])
    Library(library).cache.put_target("key", signature)
    back = Library(library).cache.get_target("key")
    assert frozen(dict(back.units)) == frozen(dict(signature.units))
    assert back.fingerprint == signature.fingerprint
    assert Library(library).cache.get_target("other") is None


def test_another_loss_or_head_is_collected_anew(library):
    selector(library, loss_fn=plain_loss).rank(Net(), make_loader())
    (kept,) = (library / ".targets").iterdir()
    selector(library, loss_fn=plain_loss).rank(Net(), make_loader())
    assert [*(library / ".targets").iterdir()] == [kept]
    selector(library, loss_fn=lambda module, batch: 2 * plain_loss(module, batch)).rank(Net(), make_loader())
    selector(library, loss_fn=plain_loss).rank(Net(classes=5), make_loader())
    assert len([*(library / ".targets").iterdir()]) == 3


def test_a_library_that_cannot_be_written_still_ranks(library):
    Path(library, ".targets").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not kept"):
        selection = selector(library).select(Net(), make_loader())
    assert selection.source == "near"


def test_a_target_with_too_few_samples_is_refused(library):
    with pytest.raises(PGEError, match="at least 16 samples"):
        selector(library).rank(Net(), make_loader(samples=12))
    with pytest.raises(PGEError, match="at least one batch"):
        selector(library).rank(Net(), make_loader(samples=0, shuffle=False))


def test_a_loss_that_is_not_finite_is_refused(library):
    with pytest.raises(PGEError, match="finite loss"):
        selector(library, loss_fn=lambda module, batch: F.cross_entropy(module(batch[0]), batch[1]) * torch.nan).rank(
            Net(), make_loader()
        )
    assert not (library / ".targets").exists()


def test_a_winner_whose_weights_are_damaged_gives_way_to_the_next(library):
    ranking = selector(library).rank(Net(), make_loader())
    first, second = (line.name for line in ranking.sources[:2])
    (weights,) = (library / first).glob("encoder-*")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=f"'{first}' is the best, but cannot be loaded"):
        selection = selector(library).select(Net(), make_loader())
    assert selection.source == selection.ranking.best.name == second
    failed = selection.ranking.sources[-1]
    assert (failed.name, failed.status, failed.estimate) == (first, "failed", None)
    assert "SHA-256" in failed.reason
    for path in library.glob("*/encoder-*"):
        path.unlink()
    with pytest.warns(UserWarning, match="cannot be loaded"), pytest.raises(PGEError, match="all 2 failed"):
        selector(library).select(Net(), make_loader())
