"""Both callbacks beside other features of the Trainer: resuming, Slurm, other callbacks, several of ours, messages."""

import os
import signal
import warnings
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.utilities import rank_zero_info

from grid import SilentNet, SizedData, TunedNet
from pge_lightning.errors import PGEError
from pge_lightning.library import Library
from pge_lightning.probe import PROBES
from pge_lightning.select import SourceSelector
from trainer_helpers import (
    LADDER,
    TINY,
    Bomb,
    MinedNet,
    Net,
    add_source,
    callback,
    fit,
    frozen,
    make_loader,
    selection,
)


def torch_compiled(module):
    return torch.compile(module, backend="eager")


def compiled_in_place(module):
    module.encoder.compile(backend="eager")
    return module


def weights(module):
    return frozen(dict(module.state_dict()))


# --- Resuming


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A job of Slurm as Lightning sees one; ``scontrol`` writes down what it was asked for."""
    job = {"NTASKS": 1, "NTASKS_PER_NODE": 1, "JOB_NAME": "train", "JOB_ID": 7, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    command = tmp_path / "bin/scontrol"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    return tmp_path


def preempt():
    """What Slurm sends before the time is over, and when it is."""
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGTERM)


def job(folder, ours, bomb=None):
    """One start of the same script; a preempted one ends with SystemExit. Returns the module."""
    pl.seed_everything(1, verbose=False)
    module = MinedNet(bomb)
    environment = SLURMEnvironment(auto_requeue=True)
    try:
        fit(module, make_loader(), [ours], max_epochs=2, plugins=[environment], default_root_dir=str(folder))
    except SystemExit:
        module.bomb = None
    return module


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("hpc_ckpt_*"))


def test_a_job_preempted_in_the_phase_collects_when_it_is_requeued(slurm):
    bomb = Bomb(2, preempt)
    first, second = callback(slurm / "library"), callback(slurm / "library")
    job(slurm, first, bomb)
    assert checkpoints(slurm) == ["hpc_ckpt_1.ckpt"]
    assert (slurm / "scontrol.log").read_text() == "requeue 7\n"
    assert (bomb.steps, first.signatures) == (1, [])
    state = torch.load(slurm / "hpc_ckpt_1.ckpt", weights_only=True)
    assert (state["global_step"], state["callbacks"][first.state_key]["files"]) == (0, [])
    requeued = job(slurm, second)
    assert len(second.signatures) == 1
    assert Library(slurm / "library").names() == ["mnist"]
    undisturbed = job(slurm / "other", callback(slurm / "other/library"))
    assert weights(requeued) == weights(undisturbed)


def test_a_job_preempted_in_training_registers_without_collecting_again(slurm):
    first, second = callback(slurm / "library"), callback(slurm / "library")
    job(slurm, first, Bomb(6 + 3, preempt))
    assert checkpoints(slurm) == ["hpc_ckpt_1.ckpt"]
    assert (len(first.signatures), first.source) == (1, None)
    job(slurm, second)
    (entry,) = second.source.signatures
    assert second.signatures == []
    assert frozen(dict(second.source.load_signature(entry).units)) == frozen(dict(first.signatures[0].units))


def test_a_selection_is_made_once_over_requeued_jobs(slurm, sources):
    first, second, third = [selection(sources, cache=False) for _ in range(3)]
    job(slurm, first, Bomb(2, preempt))
    assert first.selection is None
    job(slurm, second, Bomb(6 + 3, preempt))
    assert second.selection.source == "near"
    assert checkpoints(slurm) == ["hpc_ckpt_1.ckpt", "hpc_ckpt_2.ckpt"]
    kept = torch.load(slurm / "hpc_ckpt_2.ckpt", weights_only=True)["state_dict"]
    module = job(slurm, third)
    assert (third.selection, third.state_dict()) == (None, {"source": "near"})
    assert frozen(dict(kept)) != weights(module)
    assert module.calls == 8 - 2  # the second job was stopped in its third batch


def test_a_run_that_failed_in_the_phase_collects_when_it_is_started_again(tmp_path):
    def fail():
        raise ValueError("boom")

    first, second = callback(tmp_path / "library"), callback(tmp_path / "library")
    kept = OnExceptionCheckpoint(tmp_path / "kept")
    with pytest.raises(PGEError, match="boom"):
        fit(MinedNet(Bomb(2, fail)), callbacks=[first, kept], enable_checkpointing=True)
    state = torch.load(kept.ckpt_path, weights_only=True)
    assert (state["global_step"], state["callbacks"][first.state_key]["files"]) == (0, [])
    again = [second, OnExceptionCheckpoint(tmp_path / "kept")]
    trainer = fit(MinedNet(), callbacks=again, enable_checkpointing=True)
    assert trainer.ckpt_path == kept.ckpt_path
    assert (len(second.signatures), second.source.name) == (1, "mnist")


def test_a_checkpoint_of_no_steps_does_not_keep_from_collecting_but_from_selecting(tmp_path, sources):
    start = Net()
    fit(start, max_steps=0, max_epochs=None).save_checkpoint(tmp_path / "start.ckpt")
    ours, theirs, module = callback(tmp_path / "library"), selection(sources), Net()
    fit(module, callbacks=[ours, theirs], ckpt_path=str(tmp_path / "start.ckpt"), limit_train_batches=1)
    assert len(ours.signatures) == 1
    assert theirs.selection is None  # somebody chose these weights


# --- Other callbacks


@pytest.mark.parametrize("added_by", ["the Trainer", "the module"])
@pytest.mark.parametrize("other", [WeightAveraging, EMAWeightAveraging, lambda: ModelPruning("l1_unstructured")])
def test_callbacks_that_keep_a_copy_of_the_weights_are_refused_beside_a_selection(other, added_by, sources):
    other, module = other(), Net()
    module.configure_callbacks = lambda: [other] if added_by == "the module" else []
    callbacks = [selection(sources)] + ([other] if added_by == "the Trainer" else [])
    with pytest.raises(MisconfigurationException, match=f"not supported with {type(other).__name__}"):
        fit(module, callbacks=callbacks)
    assert module.calls == 0


def test_stochastic_weight_averaging_averages_what_was_selected(sources):
    def run(before, callbacks):
        pl.seed_everything(1, verbose=False)
        module = Net()
        before(module)
        pl.seed_everything(2, verbose=False)
        averaging = StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)
        fit(module, callbacks=[*callbacks, averaging], max_epochs=3)
        return module.state_dict()

    selector = SourceSelector(str(sources), probe=TINY, verbose=False)
    two_calls = run(lambda module: selector.select(module, make_loader()), [])
    one_call = run(lambda module: None, [selection(sources)])
    torch.testing.assert_close(one_call, two_calls, rtol=0, atol=1e-6)


def test_a_tuned_rate_brings_a_warning_and_the_selection_is_made_all_the_same(sources, tmp_path):
    library = tmp_path / "tuned"
    add_source(library, "one", probe=TINY, samples=64, module=TunedNet(), encoder="backbone")
    ours, module = selection(library), TunedNet()
    with pytest.warns(UserWarning, match="LearningRateFinder tunes the rate before"):
        fit(module, callbacks=[ours, LearningRateFinder(num_training_steps=5)], default_root_dir=str(tmp_path))
    assert ours.selection.source == "one"


def test_a_tuned_batch_size_does_no_harm_to_a_selection(sources, tmp_path):
    ours = selection(sources)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*SourceSelectionCallback.*")
        finder = BatchSizeFinder(max_trials=2, steps_per_trial=1, init_val=4)
        fit(Net(), SizedData(), [ours, finder], default_root_dir=str(tmp_path))
    assert ours.selection.source == "near"


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_backbone_that_is_thawed_later_is_collected_and_selected_as_a_whole(first, tmp_path):
    expected = callback(tmp_path / "library", "plain")
    pl.seed_everything(1, verbose=False)
    fit(TunedNet(), callbacks=[expected])
    ours = [callback(tmp_path / "library", "frozen"), selection(tmp_path / "library")]
    theirs = [BackboneFinetuning(unfreeze_backbone_at_epoch=1)]
    module = TunedNet()
    fit(module, callbacks=ours + theirs if first == "ours" else theirs + ours, max_epochs=2)
    assert ours[0].signatures[0].units.keys() == expected.signatures[0].units.keys()
    ours[0].signatures[0].check_comparable(expected.signatures[0])
    assert ours[1].selection.source == "plain"
    assert set(ours[1].selection.report.loaded) >= {"backbone.0.weight", "backbone.4.bias"}


def test_a_callback_of_the_module_is_one_like_any_other(tmp_path):
    ours, module = callback(tmp_path), Net()
    module.configure_callbacks = lambda: [ours]
    fit(module)
    assert (len(ours.signatures), ours.source.name) == (1, "mnist")


# --- Several of ours


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_two_sources_and_a_selection_in_one_trainer_do_not_disturb_each_other(order, sources, tmp_path):
    def run(makers):
        pl.seed_everything(1, verbose=False)
        module, ours = Net(), [make() for make in makers]
        fit(module, callbacks=ours, max_epochs=2)
        return weights(module), ours

    makers = [
        lambda: callback(tmp_path / "library", "one", overwrite=True),
        lambda: callback(tmp_path / "library", "two", probe=replace(TINY, seed=1), encoder="encoder.0", overwrite=True),
        lambda: selection(sources),
    ]
    selected, _ = run(makers[2:])
    together, ours = run([makers[i] for i in order])
    one, two, chosen = [ours[order.index(i)] for i in range(3)]
    assert together == selected
    assert chosen.selection.source == "near"
    _, (alone,) = run(makers[:1])
    assert frozen(dict(one.signatures[0].units)) == frozen(dict(alone.signatures[0].units))
    assert list(two.signatures[0].units) == ["encoder.0.weight", "encoder.0.bias"]
    assert Library(tmp_path / "library").names() == ["one", "two"]


def test_two_selections_keep_states_of_their_own(sources):
    both = [selection(sources, encoder="encoder"), selection(sources, encoder=lambda _: ["encoder.0.weight"])]
    assert both[0].state_key != both[1].state_key
    with pytest.raises(RuntimeError, match="state_key"):
        fit(Net(), callbacks=[selection(sources), selection(sources)])


def test_a_second_fit_with_another_trainer_neither_collects_nor_selects_again(sources, tmp_path):
    ours, theirs, module = callback(tmp_path / "library"), selection(sources), Net()
    fit(module, callbacks=[theirs, ours])
    registered, trained = ours.source, weights(module)
    (signature,) = ours.signatures
    fit(module, callbacks=[theirs, ours], max_steps=1, max_epochs=-1)
    assert (ours.source, ours.signatures) == (registered, [signature])
    assert Library(tmp_path / "library").open("mnist") == registered
    assert weights(module) != trained


# --- What is told


class Marker(Callback):
    """Writes a word to where everything is written to."""

    def __init__(self, word):
        self.word = word

    def on_train_start(self, trainer, pl_module):
        rank_zero_info(self.word)
        warnings.warn(self.word, stacklevel=1)


@pytest.mark.parametrize("kind", ["collecting", "selecting", "going on"])
def test_a_phase_says_one_thing(kind, sources, tmp_path, caplog, capsys):
    probes = [LADDER, TINY, replace(PROBES["published"], batch_size=8)]
    ours = callback(tmp_path / "library", probe=probes) if kind == "collecting" else selection(sources)
    path = None
    if kind == "going on":
        path = str(tmp_path / "end.ckpt")
        fit(Net(), callbacks=[ours]).save_checkpoint(path)
    caplog.clear()
    capsys.readouterr()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(Net(), callbacks=[Marker("before"), ours, Marker("after")], max_epochs=2, ckpt_path=path)
    texts = [record.getMessage() for record in caplog.records]
    inside = texts[texts.index("before") + 1 : texts.index("after")]
    assert len(inside) == (0 if kind == "selecting" else 1)  # a selection shows its table, unless told to be quiet
    warned = [str(warning.message) for warning in told]
    assert warned.index("after") == warned.index("before") + 1
    assert capsys.readouterr().out == ""


# --- Compiling


@pytest.mark.parametrize("compile_it", [torch_compiled, compiled_in_place])
def test_a_compiled_module_has_the_signature_of_the_plain_one(compile_it, tmp_path):
    plain, ours = callback(tmp_path / "plain"), callback(tmp_path / "compiled")
    for made, change in ((plain, lambda module: module), (ours, compile_it)):
        pl.seed_everything(1, verbose=False)
        module = SilentNet()
        fit(change(module), callbacks=[made])
    assert frozen(dict(ours.signatures[0].units)) == frozen(dict(plain.signatures[0].units))


def test_a_compiled_step_that_logs_ends_as_it_does_without_us(tmp_path):
    # Under PyTorch 2.12 and later, lightning 2.6.6 cannot trace `self.log`.
    outcomes = []
    for ours in ([], [callback(tmp_path)]):
        try:
            fit(torch.compile(Net(), backend="eager"), callbacks=ours)
            outcomes.append(None)
        except Exception as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]
    assert (outcomes[1] is None) == (tmp_path / "mnist/source.json").exists()
