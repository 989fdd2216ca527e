"""Both callbacks under a real Trainer: what they register or load, when they refuse, and what a refusal leaves."""

import resource
from dataclasses import replace
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    Callback,
    ModelCheckpoint,
)
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.xla import XLAStrategy
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from pge_lightning.callbacks import PrincipalGradientCallback, SourceSelectionCallback
from pge_lightning.callbacks.phase import check_strategy
from pge_lightning.collect import collect_signature
from pge_lightning.encoder import encoder_state
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.library import Library
from pge_lightning.probe import PROBES
from trainer_helpers import (
    LADDER,
    TINY,
    Data,
    Net,
    callback,
    fit,
    frozen,
    make_data,
    make_loader,
    module_state,
    plain_loss,
    selection,
)


def weights(module):
    return frozen(encoder_state(module, "encoder"))


def opened(folder, name="mnist"):
    library = Library(folder)
    library.verify(name)
    return library.open(name)


class Watch(Callback):
    """Keeps the encoder's weights at the first step, and counts the steps."""

    def __init__(self):
        self.first, self.batches = None, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.first = self.first or weights(pl_module)
        self.batches += 1


class Failing(Callback):
    """Ends training with an error at the start of the second epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise RuntimeError("power cut")


def test_a_trained_source_is_registered_with_its_facts(tmp_path):
    module, ours = Net(), callback(tmp_path)
    checkpoints = ModelCheckpoint(dirpath=tmp_path / "checkpoints", monitor="val_loss")
    validated = Data()
    validated.val_dataloader = lambda: make_loader(1, shuffle=False)
    trainer = fit(module, validated, [ours, checkpoints], enable_checkpointing=True, max_epochs=2)
    source = opened(tmp_path)
    assert source == ours.source
    assert frozen(source.load_weights()) == weights(module)
    facts = source.facts
    assert (facts.classes, facts.samples, facts.metric) == (3, 64, "val_loss")
    assert facts.value == pytest.approx(float(trainer.callback_metrics["val_loss"]), rel=0, abs=0)
    assert facts.extra["metrics"].keys() == trainer.callback_metrics.keys()
    assert 0 < facts.seconds_collecting == ours.signatures[0].seconds
    assert 0 < facts.seconds_training < 60
    (entry,) = source.signatures
    assert (entry.probe, entry.recipe, entry.budget) == ("tiny", TINY.recipe, 16)
    assert frozen(dict(source.load_signature(entry).units)) == frozen(dict(ours.signatures[0].units))
    assert list(ours.signatures[0].units) == [n for n, _ in module.named_parameters() if n.startswith("encoder.")]


def test_the_signature_is_that_of_plain_pytorch(tmp_path):
    torch.manual_seed(0)
    module, ours = Net(), callback(tmp_path)
    alone = collect_signature(module, make_loader(), probe=TINY, encoder="encoder")
    fit(module, callbacks=[ours])
    assert frozen(dict(ours.signatures[0].units)) == frozen(dict(alone.units))
    assert ours.signatures[0].fingerprint == alone.fingerprint
    assert ours.signatures[0].data == alone.data


def test_a_source_holds_several_probes_and_the_rungs_it_fills(tmp_path):
    published = replace(PROBES["published"], batch_size=8)
    fit(Net(), make_loader(samples=48), [callback(tmp_path, probe=[LADDER, published], classes=5)])
    source = opened(tmp_path)
    assert [(entry.probe, entry.budget) for entry in source.signatures] == [
        ("ladder", 16),
        ("ladder", 32),
        ("published", None),
    ]
    assert (source.facts.classes, source.facts.metric, source.facts.value) == (5, None, None)


def test_metric_encoder_and_loss_can_be_named(tmp_path):
    ours = callback(tmp_path, metric="train_acc", encoder="encoder.0", loss_fn=plain_loss, factory=Net)
    trainer = fit(Net(), callbacks=[ours])
    source = opened(tmp_path)
    assert (source.facts.metric, source.facts.encoder) == ("train_acc", "encoder.0")
    assert source.facts.value == source.facts.extra["metrics"]["train_acc"] == trainer.callback_metrics["train_acc"]
    assert source.load_weights().keys() == {"encoder.0.weight", "encoder.0.bias"} == ours.signatures[0].units.keys()


def test_stopping_after_collecting_trains_nothing(tmp_path):
    module, ours, watch = Net(), callback(tmp_path, stop_after_collecting=True), Watch()
    before = frozen(module_state(module))
    for _ in range(2):
        trainer = fit(module, callbacks=[ours, watch], max_epochs=3)
        assert (trainer.global_step, watch.batches) == (0, 0)
    assert frozen(module_state(module)) == before
    assert frozen(opened(tmp_path).load_weights()) == weights(module)


@pytest.mark.parametrize("flag", ["min_epochs", "min_steps"])
def test_stopping_after_collecting_refuses_a_minimum_of_training(flag, tmp_path):
    module = Net()
    with pytest.raises(MisconfigurationException, match="min_epochs"):
        fit(module, callbacks=[callback(tmp_path, stop_after_collecting=True)], **{flag: 1})
    assert module.calls == 0


def test_a_resumed_run_registers_what_was_collected_before(tmp_path):
    first, again = callback(tmp_path / "library"), callback(tmp_path / "library")
    checkpoints = ModelCheckpoint(dirpath=tmp_path, filename="first", save_top_k=-1)
    with pytest.raises(RuntimeError, match="power cut"):
        fit(Net(), callbacks=[first, checkpoints, Failing()], enable_checkpointing=True, max_epochs=2)
    assert Library(tmp_path / "library").names() == []
    module = Net()
    trainer = fit(module, callbacks=[again], ckpt_path=str(tmp_path / "first.ckpt"), max_epochs=2)
    assert trainer.global_step == 8
    assert again.signatures == []
    source = opened(tmp_path / "library")
    (entry,) = source.signatures
    stored = source.load_signature(entry)
    assert frozen(dict(stored.units)) == frozen(dict(first.signatures[0].units))
    assert stored.seconds == source.facts.seconds_collecting == first.signatures[0].seconds
    assert frozen(source.load_weights()) == weights(module)


def test_a_run_resumed_without_the_callback_before_collects_nothing(tmp_path):
    fit(Net()).save_checkpoint(tmp_path / "plain.ckpt")
    ours = callback(tmp_path / "library")
    with pytest.warns(UserWarning, match="goes on from a checkpoint"):
        trainer = fit(Net(), callbacks=[ours], ckpt_path=str(tmp_path / "plain.ckpt"), max_epochs=2)
    assert trainer.global_step == 8
    assert (ours.signatures, ours.source) == ([], None)
    assert Library(tmp_path / "library").names() == []


def test_checkpoints_load_without_pickle_and_count_only_training_time(tmp_path):
    ours = callback(tmp_path / "library")
    trainer = fit(Net(), callbacks=[ours])
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"][ours.state_key]
    assert state["files"] == [entry.file for entry in ours.source.signatures]
    assert state["facts"]["seconds_training"] == ours.source.facts.seconds_training
    fresh = {"files": [], "extras": {}, "facts": {"seconds_training": 0.0}, "frozen": []}
    assert callback(tmp_path / "library").state_dict() == fresh


def test_fast_dev_run_touches_every_line_and_writes_nothing(tmp_path):
    ours, watch = callback(tmp_path / "library", probe=["default", "published"]), Watch()
    fit(Net(), callbacks=[ours, watch], fast_dev_run=1)
    assert [(s.probe.name, s.probe.steps, s.restarts) for s in ours.signatures] == [
        ("default", 1, 2),
        ("published", 1, 1),
    ]
    assert watch.batches == 1
    assert not (tmp_path / "library").exists()
    fit(Net(), callbacks=[callback(tmp_path / "library")])
    fit(Net(), callbacks=[callback(tmp_path / "library")], fast_dev_run=1)  # the name is taken, but nothing is written
    assert Library(tmp_path / "library").names() == ["mnist"]


def test_a_callback_tried_under_fast_dev_run_still_collects_afterwards(tmp_path):
    ours = callback(tmp_path)
    fit(Net(), callbacks=[ours], fast_dev_run=1)
    fit(Net(), callbacks=[ours])
    assert [signature.probe for signature in ours.signatures] == [TINY]
    assert len(opened(tmp_path).signatures) == 1


def test_a_second_fit_does_not_collect_again(tmp_path):
    ours, module = callback(tmp_path), Net()
    fit(module, callbacks=[ours])
    (signature,), source = ours.signatures, ours.source
    fit(module, callbacks=[ours])
    assert ours.signatures[0] is signature
    assert ours.source is source
    assert opened(tmp_path) == source


def test_two_callbacks_work_in_one_trainer(tmp_path):
    both = [callback(tmp_path, "one"), callback(tmp_path, "two", probe=LADDER)]
    trainer = fit(Net(), callbacks=both)
    assert Library(tmp_path).names() == ["one", "two"]
    assert [len(ours.signatures) for ours in both] == [1, 3]
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    states = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]
    assert {key for key in states if "PrincipalGradient" in key} == {ours.state_key for ours in both}
    with pytest.raises(RuntimeError, match="state_key"):
        fit(Net(), callbacks=[callback(tmp_path, "one"), callback(tmp_path, "one")])


def test_a_taken_name_is_refused_before_any_work(tmp_path):
    fit(Net(), callbacks=[callback(tmp_path)])
    source, module = opened(tmp_path), Net()
    with pytest.raises(PGEError, match="registered already"):
        fit(module, callbacks=[callback(tmp_path)])
    assert module.calls == 0
    assert opened(tmp_path) == source
    fit(module, callbacks=[callback(tmp_path, overwrite=True)])
    assert frozen(opened(tmp_path).load_weights()) == weights(module)


def test_bad_names_and_probes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="source name"):
        fit(Net(), callbacks=[callback(tmp_path, "../up")])
    with pytest.raises(ValueError, match="`probe`"):
        callback(tmp_path, probe="slow")


def test_a_library_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    module = Net()
    with pytest.raises(ArtifactError, match="file"):
        fit(module, callbacks=[callback(tmp_path / "file/library")])
    assert module.calls == 0


class ByHand(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Nameless(Net):
    def __init__(self):
        super().__init__()
        self.body = self.encoder
        del self.encoder

    def forward(self, x):
        return self.head(self.body(x))


class NotFinite(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * torch.nan


class Uncovered(Net):
    def __init__(self, size):
        super().__init__()
        self.encoder.scale = nn.Parameter(torch.rand(size))


class Ragged(IterableDataset):
    def __iter__(self):
        return iter([["text", torch.ones(2)]] * 20)


@pytest.mark.parametrize(
    ("module", "data", "message"),
    [
        (ByHand, make_loader, "automatic optimization"),
        (Nameless, make_loader, "encoder="),
        (NotFinite, make_loader, "finite loss"),
        (lambda: Uncovered(3), make_loader, "encoder.scale"),
        (Net, lambda: make_loader(samples=4), "at least one batch of 8"),
        (Net, lambda: make_loader(samples=12), "at least 16 samples"),
        (Net, lambda: DataLoader(Ragged(), batch_size=None), "batches of tensors"),
    ],
)
def test_what_cannot_be_collected_is_refused_before_training(module, data, message, tmp_path):
    module = module()
    before = frozen(module_state(module))
    with pytest.raises(PGEError, match=message):
        fit(module, data(), [callback(tmp_path)])
    assert frozen(module_state(module)) == before
    assert Library(tmp_path).names() == []


def test_manual_optimization_works_with_a_loss(tmp_path):
    fit(ByHand(), callbacks=[callback(tmp_path, loss_fn=plain_loss)])
    assert opened(tmp_path).facts.samples == 64


def test_a_run_without_batches_says_that_nothing_is_registered(tmp_path):
    with pytest.warns(UserWarning, match="not registered"):
        fit(Net(), make_loader(samples=0, shuffle=False), [callback(tmp_path)])
    with pytest.warns(UserWarning, match="not registered"):
        fit(Net(), callbacks=[callback(tmp_path)], max_epochs=0)
    assert Library(tmp_path).names() == []


def test_an_iterator_as_training_data_is_refused(tmp_path):
    batches = (make_data()[at : at + 16] for at in range(0, 64, 16))
    with pytest.raises(MisconfigurationException, match="generator as training data"):
        fit(Net(), batches, [callback(tmp_path)])


@pytest.mark.parametrize("make", [callback, lambda folder: SourceSelectionCallback(str(folder))])
def test_a_sharding_strategy_is_refused(make, tmp_path):
    # A Trainer on the CPU takes the strategy as an object; the refusal comes before parameters would be sharded.
    with pytest.raises(MisconfigurationException, match="ModelParallelStrategy"):
        fit(Net(), callbacks=[make(tmp_path)], strategy=ModelParallelStrategy())


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy, XLAStrategy])
def test_other_strategies_that_hide_parameters_are_refused(kind):
    # These need hardware or packages to be set up, so that a bare object of their class stands for them.
    with pytest.raises(MisconfigurationException, match=kind.__name__):
        check_strategy(SimpleNamespace(strategy=kind.__new__(kind)), "Owner")
    check_strategy(SimpleNamespace(strategy=DDPStrategy()), "Owner")


@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupted_training_registers_nothing_and_loses_nothing(kept, tmp_path):
    if kept:
        fit(Net(), callbacks=[callback(tmp_path)])
    before = opened(tmp_path) if kept else None
    with pytest.raises(RuntimeError, match="power cut"):
        fit(Net(), callbacks=[callback(tmp_path, overwrite=kept), Failing()], max_epochs=2)
    assert Library(tmp_path).names() == (["mnist"] if kept else [])
    assert not kept or opened(tmp_path) == before
    fit(Net(), callbacks=[callback(tmp_path, overwrite=kept)])
    assert opened(tmp_path) != before


class DiskFull(Callback):
    """From the end of training on, no file may grow beyond a few bytes."""

    def on_train_end(self, trainer, pl_module):
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, self.limits[1]))

    def teardown(self, trainer, pl_module, stage):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


def test_an_overwriting_that_fails_keeps_the_old_source_and_the_trained_module(tmp_path):
    fit(Net(), callbacks=[callback(tmp_path)])
    before = opened(tmp_path)
    ours, module = callback(tmp_path, overwrite=True), Net()
    with pytest.warns(UserWarning, match="could not be registered"):
        fit(module, callbacks=[ours, DiskFull()])
    assert ours.source is None
    assert module.calls == 4
    assert opened(tmp_path) == before
    assert frozen(before.load_weights()) != weights(module)


def test_a_barebones_trainer_works(tmp_path):
    flags = {"logger": None, "enable_checkpointing": None, "log_every_n_steps": None, "barebones": True}
    fit(Net(), callbacks=[callback(tmp_path)], **flags)
    assert opened(tmp_path).facts.extra == {"metrics": {}}


def test_only_fitting_is_of_interest(tmp_path):
    (tmp_path / "file").write_text("")
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[callback(tmp_path / "file/library")])
    trainer.callbacks.append(SourceSelectionCallback(str(tmp_path)))
    assert len(trainer.validate(Net(), make_loader(shuffle=False), verbose=False)) == 1


def test_the_phase_shows_in_the_profile(tmp_path):
    trainer = fit(Net(), callbacks=[callback(tmp_path)], profiler="simple")
    assert len(trainer.profiler.recorded_durations["[Callback]PrincipalGradientCallback.collect"]) == 1


@pytest.mark.parametrize("kind", [PrincipalGradientCallback, SourceSelectionCallback])
def test_a_command_line_can_build_it(kind, tmp_path):
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Callback, "callback")
    arguments = [f"--callback={kind.__module__}.{kind.__name__}", f"--callback.library={tmp_path}"]
    arguments += ["--callback.name=mnist", "--callback.probe=fast"] if kind is PrincipalGradientCallback else []
    built = parser.instantiate_classes(parser.parse_args(arguments)).callback
    assert isinstance(built, kind)


# --- SourceSelectionCallback


def test_the_best_source_is_loaded_before_the_first_step_and_then_trained(sources):
    module, watch, ours = Net(), Watch(), selection(sources)
    parameters = [id(unit) for unit in module.parameters()]
    trainer = fit(module, callbacks=[ours, watch])
    best = frozen(Library(sources).open("near").load_weights())
    assert ours.selection.source == "near"
    assert len(ours.selection.ranking.sources) == 2
    assert watch.first == best
    assert weights(module) != best
    assert [id(unit) for unit in module.parameters()] == parameters
    held = [id(unit) for group in trainer.optimizers[0].param_groups for unit in group["params"]]
    assert held == parameters
    assert module.calls == 4


def test_a_resumed_run_keeps_its_weights(sources, tmp_path):
    trained = Net()
    fit(trained, callbacks=[selection(sources)]).save_checkpoint(tmp_path / "end.ckpt")
    module, watch, ours = Net(), Watch(), selection(sources)
    fit(module, callbacks=[ours, watch], ckpt_path=str(tmp_path / "end.ckpt"), max_epochs=2)
    assert watch.first == weights(trained)
    assert ours.selection is None
    assert ours.state_dict() == {"source": "near"}


def test_a_second_fit_goes_on_with_the_weights(sources):
    module, ours = Net(), selection(sources)
    fit(module, callbacks=[ours])
    trained, watch = weights(module), Watch()
    fit(module, callbacks=[ours, watch])
    assert watch.first == trained


def test_a_library_without_sources_is_an_error_before_training(tmp_path):
    module = Net()
    with pytest.raises(PGEError, match="there are none"):
        fit(module, callbacks=[selection(tmp_path)])
    assert module.calls == 0


def test_the_trainer_side_of_selection_uses_the_users_loss(sources):
    ours = selection(sources, loss_fn=plain_loss, encoder="encoder")
    module = ByHand()
    fit(module, callbacks=[ours])
    assert ours.selection.source == "near"
