import logging
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from pge_lightning.callbacks import FineTuningRecordCallback
from pge_lightning.library import Library
from pge_lightning.select import SourceSelector
from trainer_helpers import TINY, Net, fit, handled_interrupts, make_loader, selection


def recorder(folder: Path, **options):
    return FineTuningRecordCallback(
        folder, "usps", **{"source": "mnist", "metric": "train_acc", "mode": "max", **options}
    )


class NetWithTest(Net):
    def test_step(self, batch, batch_idx):
        self.log("test_loss", torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))


class Breaks(Callback):
    def __init__(self, error, epoch=0):
        self.error, self.epoch = error, epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise self.error


def test_a_finished_fit_is_recorded_with_its_last_metric(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")  # as `seed_everything` does
    trainer = fit(Net(), callbacks=[callback := recorder(tmp_path)], max_epochs=2)
    (record,) = Library(tmp_path).records()
    assert record == callback.record
    assert (record.source, record.target, record.metric) == ("mnist", "usps", "train_acc")
    assert record.value == pytest.approx(trainer.callback_metrics["train_acc"].item())
    assert record.higher_is_better
    assert record.seed == 7
    assert record.settings == {"max_epochs": 2, "batches": 4}
    assert record.estimates == {}


def test_seed_and_settings_are_those_given(tmp_path):
    fit(Net(), callbacks=[recorder(tmp_path, seed=3, settings={"labels": 64})])
    (record,) = Library(tmp_path).records()
    assert (record.seed, record.settings) == (3, {"labels": 64})


def test_a_run_that_was_not_seeded_has_no_seed(tmp_path, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    fit(Net(), callbacks=[recorder(tmp_path)])
    (record,) = Library(tmp_path).records()
    assert record.seed is None


def test_a_selection_gives_the_source_and_what_was_told_of_it(sources):
    model = Net()
    chosen = SourceSelector(sources, probe=TINY, encoder="encoder", verbose=False).select(model, make_loader())
    fit(model, callbacks=[recorder(sources, source=chosen)])
    (record,) = Library(sources).records()
    assert record.source == chosen.source
    assert record.estimates == {"gap": chosen.ranking.best.estimate.value}


def test_a_selection_of_none_is_recorded_as_from_scratch(sources):
    chosen = SourceSelector(sources, probe=TINY, encoder="encoder", verbose=False).select(Net(), make_loader())
    fit(Net(), callbacks=[recorder(sources, source=replace(chosen, source=None))])
    (record,) = Library(sources).records()
    assert (record.source, record.estimates) == ("scratch", {})


def test_another_source_of_a_ranking_is_recorded_with_its_own_estimate(sources):
    ranking = SourceSelector(sources, probe=TINY, encoder="encoder", verbose=False).rank(Net(), make_loader())
    last = ranking.sources[-1]
    fit(Net(), callbacks=[recorder(sources, source=last.name, ranking=ranking)])
    fit(Net(), callbacks=[recorder(sources, source="scratch", ranking=ranking)])
    estimates = {record.source: record.estimates for record in Library(sources).records()}
    assert estimates == {last.name: {"gap": last.estimate.value}, "scratch": {}}


def test_a_source_that_could_not_be_judged_is_recorded_without_an_estimate(sources):
    ranking = SourceSelector(sources, probe=TINY, encoder="encoder", verbose=False).rank(Net(), make_loader())
    ranking = ranking.without("far", "gone")
    ranking = replace(ranking, sources=tuple(replace(line, columns={}) for line in ranking.sources))
    fit(Net(), callbacks=[recorder(sources, source="far", ranking=ranking)])
    (record,) = Library(sources).records()
    assert record.estimates == {}


@pytest.mark.parametrize("first", ["record", "selection"])
def test_the_selecting_callback_of_the_same_trainer_tells_the_source(sources, first):
    chosen, record = selection(sources, encoder="encoder"), recorder(sources, source=None)
    fit(Net(), callbacks=[record, chosen] if first == "record" else [chosen, record])
    (found,) = Library(sources).records()
    assert found.source == chosen.selection.source
    assert found.estimates == {"gap": chosen.selection.ranking.best.estimate.value}


def test_a_run_that_goes_on_remembers_what_was_selected(sources, tmp_path):
    chosen, keep = selection(sources, encoder="encoder"), ModelCheckpoint(tmp_path / "kept", save_last=True)
    flags = {"max_epochs": 2, "enable_checkpointing": True}
    with pytest.raises(RuntimeError, match="power"):
        fit(Net(), None, [recorder(sources, source=None), chosen, keep, Breaks(RuntimeError("power"), 1)], **flags)
    again = [recorder(sources, source=None), selection(sources, encoder="encoder"), ModelCheckpoint(tmp_path / "more")]
    fit(Net(), None, again, tmp_path / "kept" / "last.ckpt", **flags)
    (record,) = Library(sources).records()
    assert again[1].selection is None
    assert (record.source, list(record.estimates)) == (chosen.selection.source, ["gap"])


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_an_interrupted_run_leaves_no_record(tmp_path, error):
    with handled_interrupts(), pytest.raises((RuntimeError, SystemExit)):
        fit(Net(), callbacks=[recorder(tmp_path), Breaks(error)])
    assert len(Library(tmp_path).records()) == 0


def test_a_dev_run_leaves_nothing(tmp_path):
    fit(Net(), callbacks=[recorder(tmp_path / "new")], fast_dev_run=True)
    assert not (tmp_path / "new").exists()


def test_the_monitored_metric_and_its_direction_are_the_default(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path / "kept", monitor="val_loss", mode="min")
    options = {"metric": None, "mode": None}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder(tmp_path, **options), checkpoint],
    )
    trainer.fit(Net(), make_loader(), make_loader(1, shuffle=False))
    (record,) = Library(tmp_path).records()
    assert (record.metric, record.higher_is_better) == ("val_loss", False)
    assert record.value == pytest.approx(trainer.callback_metrics["val_loss"].item())


def test_the_direction_of_a_named_metric_is_that_of_whoever_monitors_it(tmp_path):
    stopping = EarlyStopping("train_loss", mode="min", check_on_train_epoch_end=True)
    fit(Net(), callbacks=[recorder(tmp_path, metric="train_loss", mode=None), stopping])
    (record,) = Library(tmp_path).records()
    assert not record.higher_is_better


@pytest.mark.parametrize(("metric", "higher"), [("train_acc", True), ("train_loss", False)])
def test_the_direction_may_be_told_by_the_name(tmp_path, metric, higher):
    fit(Net(), callbacks=[recorder(tmp_path, metric=metric, mode=None)])
    (record,) = Library(tmp_path).records()
    assert record.higher_is_better == higher


def test_a_test_is_recorded_once_after_its_fit(tmp_path):
    model, callback = NetWithTest(), recorder(tmp_path, metric="test_loss", mode="min")
    trainer = fit(model, callbacks=[callback])
    assert len(Library(tmp_path).records()) == 0
    for _ in range(2):
        trainer.test(model, make_loader(3, shuffle=False), verbose=False)
    (record,) = Library(tmp_path).records()
    assert record.value == pytest.approx(trainer.callback_metrics["test_loss"].item())


def test_a_test_without_a_fit_is_not_recorded(tmp_path):
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[recorder(tmp_path)])
    trainer.test(NetWithTest(), make_loader(shuffle=False), verbose=False)
    assert len(Library(tmp_path).records()) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": None}, "without knowing the source"),
        ({"metric": None}, "without a metric"),
        ({"mode": None, "metric": "score"}, "without the direction of 'score'"),
    ],
)
def test_what_cannot_be_found_out_is_refused_before_training(tmp_path, options, says):
    model = Net()
    with pytest.raises(MisconfigurationException, match=says):
        fit(model, callbacks=[recorder(tmp_path, **options)])
    assert model.calls == 0


def test_an_unknown_direction_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Expected `mode`"):
        recorder(tmp_path, mode="best")


def test_a_library_that_cannot_be_written_is_told_of_before_training_and_costs_a_warning_only(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="will not be recorded: Expected to write"):
        trainer = fit(Net(), callbacks=[recorder(tmp_path / "file")])
    assert trainer.state.finished


def test_a_metric_that_neither_fit_nor_test_logs_is_warned_of(tmp_path, caplog):
    model = NetWithTest()
    with caplog.at_level(logging.INFO):
        trainer = fit(model, callbacks=[recorder(tmp_path, metric="f1")])
    assert "The fit did not log 'f1'" in caplog.text
    with pytest.warns(UserWarning, match="not recorded: 'f1' is nan"):
        trainer.test(model, make_loader(shuffle=False), verbose=False)
    assert len(Library(tmp_path).records()) == 0


def test_a_metric_that_is_not_finite_is_warned_of(tmp_path):
    class Diverged(Net):
        def on_train_epoch_end(self):
            self.log("diverged", float("nan"))

    with pytest.warns(UserWarning, match="not recorded: 'diverged' is nan"):
        fit(Diverged(), callbacks=[recorder(tmp_path, metric="diverged")])


def test_a_library_lost_during_training_costs_a_warning_only(tmp_path):
    class Lose(Callback):
        def on_train_end(self, trainer, pl_module):
            (tmp_path / "sources" / ".records").write_text("in the way")

    (tmp_path / "sources").mkdir()
    with pytest.warns(UserWarning, match="not recorded: Expected to"):
        trainer = fit(Net(), callbacks=[recorder(tmp_path / "sources"), Lose()])
    assert trainer.state.finished


def test_settings_without_a_json_form_cost_a_warning_only(tmp_path):
    with pytest.warns(UserWarning, match="JSON types"):
        fit(Net(), callbacks=[recorder(tmp_path, settings={"data": object()})])


def test_a_run_that_goes_on_from_a_foreign_checkpoint_started_from_nobody_knows_what(sources, tmp_path):
    keep = ModelCheckpoint(tmp_path / "kept", save_last=True)
    fit(Net(), None, [keep], enable_checkpointing=True)
    path = tmp_path / "kept" / "last.ckpt"
    with pytest.warns(UserWarning, match="not known what it started from"):
        fit(Net(), None, [recorder(sources, source=None), selection(sources)], path, max_epochs=2)
    assert len(Library(sources).records()) == 0


def test_recording_changes_nothing_in_the_training(tmp_path):
    states = []
    for callbacks in ([], [recorder(tmp_path)]):
        torch.manual_seed(0)
        model = Net()
        fit(model, callbacks=callbacks, max_epochs=2)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
