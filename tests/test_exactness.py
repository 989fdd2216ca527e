"""Training is bit-identical with and without the callback, and the comparison notices where it is not."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor, ModelCheckpoint
from torch.utils.data import BatchSampler, DataLoader

from pge_lightning.callbacks import PrincipalGradientCallback
from trainer_helpers import (
    QUIET,
    TINY,
    Augmented,
    AugmentingData,
    Jitter,
    Net,
    OwnSampler,
    Stream,
    callback,
    differing,
    frozen,
    handled_interrupts,
    logger,
    make_data,
    make_loader,
    module_state,
    randomness,
    trace,
)


class LoggingNet(Net):
    """Sends something straight to the logger's experiment, past ``self.log``."""

    def training_step(self, batch, batch_idx):
        self.logger.experiment.log_metrics({"direct": float(self.calls)}, step=self.global_step)
        return super().training_step(batch, batch_idx)


class BusyNet(Net):
    """Looks at the Trainer, at its optimizer and at global random states while it trains."""

    def __init__(self):
        super().__init__()
        self.extra = {"history": [], "generator": np.random.default_rng(0)}
        self.generator = torch.Generator().manual_seed(0)

    def training_step(self, batch, batch_idx):
        rate = self.optimizers().param_groups[0]["lr"] + np.random.rand() + random.random()
        rate += self.extra["generator"].random() + float(torch.rand((), generator=self.generator))
        self.extra["history"].append((self.trainer.global_step, self.current_epoch, rate))
        self.log_dict({"rate": rate, "batches": float(self.trainer.num_training_batches)})
        return {"loss": super().training_step(batch, batch_idx)}


def seeded_loader():
    return make_loader(generator=torch.Generator().manual_seed(7))


def sampled_loader(batched=False):
    sampler = OwnSampler(64)
    chosen = {"batch_sampler": BatchSampler(sampler, 16, False)} if batched else {"sampler": sampler, "batch_size": 16}
    return DataLoader(make_data(), **chosen)


def drawn_loader(dataset, **options):
    return lambda: DataLoader(dataset(), batch_size=16, **options)


def usual_callbacks():
    return [
        LearningRateMonitor(),
        ModelCheckpoint(monitor="train_loss_epoch", save_top_k=1, save_last=True),
        EarlyStopping("train_loss_epoch", patience=1),
    ]


@dataclass(frozen=True)
class Case:
    flags: dict[str, Any] = field(default_factory=dict)
    data: Callable[[], Any] = make_loader
    module: type[Net] = Net
    validation: bool = False
    callbacks: Callable[[], list[Callback]] = list


CASES = {
    "batch norm, dropout, torchmetrics": Case(),
    "validation and sanity check": Case(validation=True),
    "loader with a generator": Case(data=seeded_loader),
    "one worker": Case(data=lambda: make_loader(num_workers=1)),
    "persistent workers": Case(data=lambda: make_loader(num_workers=1, persistent_workers=True)),
    "accumulation": Case({"accumulate_grad_batches": 2}),
    "clipping": Case({"gradient_clip_val": 0.1}),
    "bf16-mixed": Case({"precision": "bf16-mixed"}),
    "bf16-true": Case({"precision": "bf16-true"}),
    "64-true": Case({"precision": "64-true"}),
    "limit_train_batches": Case({"limit_train_batches": 1}),
    "overfit_batches": Case({"overfit_batches": 1}),
    "sampler with state": Case(data=sampled_loader),
    "batch sampler with state": Case(data=lambda: sampled_loader(batched=True)),
    "augmenting data set": Case(data=drawn_loader(Augmented, shuffle=True)),
    "augmenting transformation": Case(data=drawn_loader(lambda: Augmented([Jitter()]), shuffle=True)),
    "augmenting data module": Case(data=AugmentingData),
    "stream": Case(data=drawn_loader(Stream)),
    "other callbacks": Case(callbacks=usual_callbacks, validation=True),
    "past self.log": Case(module=LoggingNet),
    "touches the Trainer": Case(module=BusyNet),
    "detect_anomaly": Case({"detect_anomaly": True}),
}


def run(case, folder, extra=None):
    """Two epochs from one seed; what they leave behind."""
    pl.seed_everything(1, verbose=False)
    module, data = case.module(), case.data()
    callbacks = [*case.callbacks(), *([extra] if extra else [])]
    flags = {**QUIET, "max_epochs": 2, "enable_checkpointing": bool(case.callbacks()), **case.flags}
    trainer = pl.Trainer(**flags, logger=logger(folder), callbacks=callbacks)
    trainer.fit(module, data, make_loader(1, shuffle=False) if case.validation else None)
    return trace(trainer, module, data)


@pytest.mark.parametrize("name", CASES)
def test_training_is_bit_identical(name, tmp_path):
    ours = callback(tmp_path / "library")
    expected, found = run(CASES[name], tmp_path / "without"), run(CASES[name], tmp_path / "with", ours)
    assert differing(expected, found) == []
    assert len(ours.signatures) == 1
    assert ours.source.name == "mnist"
    assert expected["global_step"] > 0
    assert "train_loss_step" in expected["logged"]


def _leak_step(trainer, module):
    module.log = module.log_dict = lambda *_, **__: None
    module.training_step(make_data()[:16], 0)
    del module.log, module.log_dict


def _leak_weights(trainer, module):
    with torch.no_grad():
        next(module.parameters()).mul_(1 + 1e-6)


LEAKS = {
    "weights": _leak_weights,
    "buffers": lambda trainer, module: module.encoder[1].running_mean.add_(1e-6),
    "non-persistent buffer": lambda trainer, module: module.drift.add_(1e-6),
    "torch": lambda trainer, module: torch.rand(1),
    "numpy": lambda trainer, module: np.random.rand(),
    "python": lambda trainer, module: random.random(),
    "loader's generator": lambda trainer, module: next(iter(trainer.train_dataloader)),
    "logged metric": lambda trainer, module: module.log("pge", 1.0),
    "logger": lambda trainer, module: trainer.logger.log_metrics({"pge": 1.0}, step=0),
    "attribute": lambda trainer, module: vars(module).update(calls=1),
    "learning rate": lambda trainer, module: trainer.optimizers[0].param_groups[0].update(lr=0.011),
    "mode": lambda trainer, module: module.encoder[3].eval(),
    "metric": lambda trainer, module: module.accuracy.update(torch.eye(3), torch.arange(3)),
    "a step on the module itself": _leak_step,
}
SHOWN_IN = {
    "weights": {"weights", "optimizer", "logged"},
    "buffers": {"buffers"},
    "non-persistent buffer": {"buffers"},
    "torch": {"randomness", "weights", "attributes"},
    "numpy": {"randomness"},
    "python": {"randomness"},
    "loader's generator": {"generators", "attributes", "weights"},
    "logged metric": {"logged", "callback_metrics"},
    "logger": {"logged"},
    "attribute": {"attributes"},
    "learning rate": {"weights", "logged"},
    "mode": {"modes", "weights"},
    "metric": {"logged"},
    "a step on the module itself": {"attributes", "buffers", "randomness"},
}


class Leaky(PrincipalGradientCallback):
    """The callback, with one trace left on purpose."""

    leak: Callable[..., Any]

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.leak(trainer, pl_module)


@pytest.mark.parametrize("kind", LEAKS)
def test_the_comparison_notices_a_trace(kind, tmp_path):
    case = CASES["loader with a generator" if kind == "loader's generator" else "batch norm, dropout, torchmetrics"]
    leaky = Leaky(library=str(tmp_path / "library"), name="mnist", probe=TINY)
    leaky.leak = LEAKS[kind]
    different = differing(run(case, tmp_path / "without"), run(case, tmp_path / "with", leaky))
    assert set(different) >= SHOWN_IN[kind]


class Bomb:
    """Goes off at one step of the phase; copies of the module share it."""

    def __init__(self, step, error):
        self.left, self.error = step, error

    def __deepcopy__(self, memo):
        return self

    def __call__(self):
        self.left -= 1
        if self.left == 0:
            raise self.error("boom")


class MinedNet(Net):
    def __init__(self, bomb=lambda: None):
        super().__init__()
        self.bomb = bomb

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        np.random.rand(), random.random(), torch.rand(1)
        self.bomb()
        return loss


class Before(Callback):
    """Remembers the state right before the phase; or stops the run there, as if the phase did nothing."""

    def __init__(self, error=None):
        self.error, self.state = error, None

    def on_train_start(self, trainer, pl_module):
        self.state = frozen({**module_state(pl_module), "randomness": randomness()})
        if self.error is not None:
            raise self.error("boom")


def interrupted(error, folder, step=0):
    """A run that an error cuts off, in the phase or in its place, and a whole run of the same module after it."""
    pl.seed_everything(1, verbose=False)
    module, data = MinedNet(Bomb(step, error)), seeded_loader()
    before = Before(None if step else error)
    callbacks = [before, callback(folder / "library")] if step else [before]
    with handled_interrupts(), pytest.raises((error, SystemExit)):
        pl.Trainer(**QUIET, max_epochs=2, logger=False, enable_checkpointing=False, callbacks=callbacks).fit(
            module, data
        )
    after = frozen({**module_state(module), "randomness": randomness()})
    module.bomb = lambda: None
    trainer = pl.Trainer(**QUIET, max_epochs=2, logger=logger(folder), enable_checkpointing=False)
    trainer.fit(module, data)
    return before.state, after, trace(trainer, module, data)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("step", [1, 3, 5])
def test_an_interruption_leaves_everything_as_it_was(error, step, tmp_path):
    before, after, found = interrupted(error, tmp_path / "phase", step)
    assert differing(before, after) == []
    _, _, expected = interrupted(error, tmp_path / "reference")
    assert differing(expected, found) == []
    assert not (tmp_path / "phase/library/mnist/source.json").exists()
