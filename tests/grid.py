"""The grid of Trainer features: each case is a small run that must be the same with and without our callback."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    OnExceptionCheckpoint,
    RichModelSummary,
    RichProgressBar,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.profilers import AdvancedProfiler, PassThroughProfiler, SimpleProfiler
from lightning.pytorch.utilities import CombinedLoader
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader

from trainer_helpers import (
    TINY,
    Augmented,
    AugmentingData,
    Data,
    Jitter,
    Net,
    OwnSampler,
    Stream,
    make_data,
    make_loader,
    plain_loss,
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
        rate = self.optimizers().param_groups[0]["lr"] + np.random.rand() + random()
        rate += self.extra["generator"].random() + float(torch.rand((), generator=self.generator))
        self.extra["history"].append((self.trainer.global_step, self.current_epoch, rate))
        self.log_dict({"rate": rate, "batches": float(self.trainer.num_training_batches)})
        return {"loss": super().training_step(batch, batch_idx)}


class SilentNet(Net):
    """Logs nothing, as ``barebones`` asks for, and as a compiled step must under lightning 2.6.6."""

    def training_step(self, batch, batch_idx):
        self.calls += 1
        self.drift += 1
        return F.cross_entropy(self(batch[0]), batch[1])


class ConfiguredNet(Net):
    """Has no layers until the Trainer asks for them."""

    def __init__(self):
        super().__init__()
        self.encoder = None

    def configure_model(self):
        if self.encoder is None:
            self.encoder = Net().encoder


class HookedNet(Net):
    """Has its say wherever Lightning asks a module."""

    def __init__(self):
        super().__init__()
        self.log_of_hooks, self.weight = [], None
        self.encoder.register_forward_hook(lambda *_: self.log_of_hooks.append("forward"))
        self.head.register_forward_pre_hook(lambda _, inputs: (inputs[0] + 0.01 * torch.randn(4),))

    def on_fit_start(self):
        self.weight = torch.ones(3)

    def on_train_start(self):
        self.log_of_hooks.append("train start")

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.log_of_hooks.append("before transfer")
        return [batch[0] + 0.01 * torch.randn_like(batch[0]), *batch[1:]]

    def on_after_backward(self):
        self.log_of_hooks.append("after backward")

    def on_before_zero_grad(self, optimizer):
        self.log_of_hooks.append(len(optimizer.state))

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        optimizer.step(closure=optimizer_closure)
        self.log_of_hooks.append("optimizer step")

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")

    def configure_callbacks(self):
        return [EarlyStopping("train_loss_epoch", patience=1), Timer()]

    def training_step(self, batch):
        loss = super().training_step(batch, 0)
        return None if self.calls % 3 == 0 else loss * self.weight.mean()

    def on_save_checkpoint(self, checkpoint):
        checkpoint["log_of_hooks"] = len(self.log_of_hooks)


class ManualNet(Net):
    """Two optimizers stepped by hand in turns, with toggling and a scheduler of its own."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            self.manual_backward(super().training_step(batch, batch_idx))
            self.clip_gradients(optimizer, gradient_clip_val=1.0)
            optimizer.step()
            optimizer.zero_grad()
            self.untoggle_optimizer(optimizer)
        self.lr_schedulers().step()

    def configure_optimizers(self):
        one = torch.optim.SGD(self.encoder.parameters(), lr=1e-2, momentum=0.9)
        two = torch.optim.AdamW(self.head.parameters(), lr=1e-2)
        return [one, two], [torch.optim.lr_scheduler.StepLR(one, 2)]


class OneCycleNet(Net):
    """Asks for the number of steps while its optimizer is made: Lightning then sets up the loaders early."""

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class PlateauNet(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "train_loss_epoch"}}


class ClosureNet(Net):
    """L-BFGS calls the step several times for one step of its own."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=2)


class TunedNet(Net):
    """Has a rate for LearningRateFinder; it is called ``encoder`` what BackboneFinetuning freezes as ``backbone``."""

    def __init__(self):
        super().__init__()
        self.lr = 1e-3
        self.backbone = self.encoder
        del self.encoder

    def forward(self, x):
        return self.head(self.backbone(x))

    def configure_optimizers(self):
        return torch.optim.Adam([unit for unit in self.parameters() if unit.requires_grad], lr=self.lr)


class SizedData(Data):
    """Has a batch size for BatchSizeFinder."""

    def __init__(self):
        super().__init__()
        self.batch_size = 4

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return make_loader(1, shuffle=False)


class PairNet(Net):
    """Takes a batch of each loader."""

    def training_step(self, batch, batch_idx):
        losses = [super(PairNet, self).training_step(part, batch_idx) for part in batch.values() if part is not None]
        return sum(losses)


def pair():
    return {"a": make_loader(), "b": make_loader(1, 48, generator=torch.Generator().manual_seed(9))}


def fit_once(trainer, module, data, validation):
    """The usual way; ``trainer`` makes a new Trainer, with new callbacks."""
    trainer = trainer()
    trainer.fit(module, data, validation)
    return trainer


def fit_compiled(backend):
    def run(trainer, module, data, validation):
        trainer = trainer()
        trainer.fit(torch.compile(module, backend=backend), data, validation)
        return trainer

    return run


def fit_twice(trainer, module, data, validation):
    trainer = trainer()
    trainer.fit(module, data, validation)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, data, validation)
    return trainer


def fit_with_two_trainers(trainer, module, data, validation):
    first = trainer()
    first.fit(module, data, validation)
    second = trainer(version=1, keep=True)
    second.fit(module, data, validation)
    return second


def fit_from(path, trainer, module, data, validation, **first):
    """Go on from a checkpoint of another run, in a Trainer that knows only this file."""
    earlier = trainer(**first)
    earlier.fit(module, data, validation)
    earlier.save_checkpoint(f"{earlier.default_root_dir}/{path}")
    later = trainer(version=1)
    later.fit(module, data, validation, ckpt_path=f"{earlier.default_root_dir}/{path}")
    return later


def fit_and_resume(*run):
    """From the middle of the first epoch."""
    return fit_from("middle.ckpt", *run, max_steps=3, max_epochs=-1)


def fit_from_the_start(*run):
    """From a checkpoint that was written before the first step."""
    return fit_from("start.ckpt", *run, max_steps=0, max_epochs=None, ours=False)


def fit_and_test(trainer, module, data, validation):
    trainer = trainer()
    trainer.validate(module, validation, verbose=False)
    trainer.fit(module, data, validation)
    trainer.validate(module, validation, verbose=False)
    return trainer


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
    """One run: Trainer arguments, data, module, other callbacks, arguments of ours, and the way it is started."""

    flags: dict[str, Any] = field(default_factory=dict)
    data: Callable[[], Any] = make_loader
    module: Callable[[], pl.LightningModule] = Net
    validation: bool = False
    callbacks: Callable[[], list[Callback]] = list
    options: dict[str, Any] = field(default_factory=dict)
    fit: Callable[..., pl.Trainer] = fit_once
    registers: bool = True

    @property
    def quiet(self) -> bool:
        """Whether the module or the Trainer logs nothing."""
        return self.module is SilentNet or "fast_dev_run" in self.flags


def beside(*kinds, module=Net, **options):
    """A case with other callbacks in the same Trainer."""
    return Case(callbacks=lambda: [kind() for kind in kinds], module=module, **options)


MODES = ["min_size", "max_size", "max_size_cycle"]
PRECISIONS = ["32-true", "64-true", "bf16-mixed", "bf16-true", "16-mixed", "16-true"]

CASES = {
    "batch norm, dropout, torchmetrics": Case(),
    "validation and sanity check": Case(validation=True),
    "label-free probe": Case(options={"probe": replace(TINY, name="free", pretext="auto")}),
    # data
    "loader with a generator": Case(data=seeded_loader),
    "one worker": Case(data=lambda: make_loader(num_workers=1)),
    "persistent workers": Case(data=lambda: make_loader(num_workers=1, persistent_workers=True)),
    "sampler with state": Case(data=sampled_loader),
    "batch sampler with state": Case(data=lambda: sampled_loader(batched=True)),
    "augmenting data set": Case(data=drawn_loader(Augmented, shuffle=True)),
    "augmenting transformation": Case(data=drawn_loader(lambda: Augmented([Jitter()]), shuffle=True)),
    "augmenting data module": Case(data=AugmentingData),
    "stream": Case(data=drawn_loader(Stream)),
    "several loaders": Case(data=pair, module=PairNet),
    **{mode: Case(data=lambda mode=mode: CombinedLoader(pair(), mode), module=PairNet) for mode in MODES},
    # precision
    **{precision: Case({"precision": precision}) for precision in PRECISIONS},
    "precision as a plugin": Case({"plugins": [MixedPrecision("bf16-mixed", "cpu")]}),
    # optimization
    "accumulation": Case({"accumulate_grad_batches": 2}),
    "clipping by norm": Case({"gradient_clip_val": 0.1}),
    "clipping by value": Case({"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    "manual optimization with two optimizers": Case(module=ManualNet, options={"loss_fn": plain_loss}),
    "one cycle over the estimated steps": Case(module=OneCycleNet),
    "schedule by a metric": Case(module=PlateauNet),
    "optimizer with a closure": Case(module=ClosureNet),
    "detect_anomaly": Case({"detect_anomaly": True}),
    "deterministic": Case({"deterministic": True}),
    "benchmark": Case({"benchmark": True}),
    # the module
    "past self.log": Case(module=LoggingNet),
    "touches the Trainer": Case(module=BusyNet),
    "hooks": Case(module=HookedNet),
    "configure_model": Case(module=ConfiguredNet),
    "compiled, eager": Case(module=SilentNet, fit=fit_compiled("eager")),
    "compiled, aot_eager": Case(module=SilentNet, fit=fit_compiled("aot_eager")),
    # the loops
    "max_steps": Case({"max_steps": 5, "max_epochs": -1}),
    "max_time": Case({"max_time": {"hours": 1}}),
    "min_epochs": Case({"min_epochs": 3, "max_epochs": 3}),
    "limit_train_batches": Case({"limit_train_batches": 1}),
    "limit_train_batches as a share": Case({"limit_train_batches": 0.5}),
    "overfit_batches": Case({"overfit_batches": 1}),
    "reload_dataloaders_every_n_epochs": Case({"reload_dataloaders_every_n_epochs": 1}, data=Data),
    "check_val_every_n_epoch": Case({"check_val_every_n_epoch": 2}, validation=True),
    "val_check_interval": Case({"val_check_interval": 2}, validation=True),
    "val_check_interval over epochs": Case({"val_check_interval": 3, "check_val_every_n_epoch": None}, validation=True),
    "without a sanity check": Case({"num_sanity_val_steps": 0}, validation=True),
    "whole sanity check": Case({"num_sanity_val_steps": -1}, validation=True),
    "inference_mode": Case({"inference_mode": False}, validation=True),
    "use_distributed_sampler": Case({"use_distributed_sampler": False}),
    "barebones": Case(
        {"barebones": True, "logger": None, "enable_checkpointing": None, "log_every_n_steps": None}, module=SilentNet
    ),
    "fast_dev_run": Case({"fast_dev_run": 2}, validation=True, registers=False),
    "fast_dev_run with several loaders": Case({"fast_dev_run": 1}, data=pair, module=PairNet, registers=False),
    # profilers
    "no profiler": Case({"profiler": PassThroughProfiler()}),
    "simple profiler": Case({"profiler": SimpleProfiler()}),
    "advanced profiler": Case({"profiler": AdvancedProfiler()}),
    # several calls
    "two calls of fit": Case(fit=fit_twice),
    "two Trainers": Case(fit=fit_with_two_trainers),
    "resumed in the middle of an epoch": Case(fit=fit_and_resume, validation=True, options={"overwrite": True}),
    "resumed before the first step": Case(fit=fit_from_the_start),
    "fit between validations": Case(fit=fit_and_test, validation=True),
    # other callbacks
    "usual callbacks": Case(callbacks=usual_callbacks, validation=True),
    "OnExceptionCheckpoint": beside(lambda: OnExceptionCheckpoint("never-written")),
    "BackboneFinetuning": beside(lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=1), module=TunedNet),
    "BackboneFinetuning from the first epoch": beside(
        lambda: BackboneFinetuning(unfreeze_backbone_at_epoch=0), module=TunedNet
    ),
    "LearningRateFinder": beside(lambda: LearningRateFinder(num_training_steps=5), module=TunedNet),
    "BatchSizeFinder": beside(lambda: BatchSizeFinder(max_trials=2, steps_per_trial=1, init_val=4), data=SizedData),
    "WeightAveraging": beside(WeightAveraging, validation=True),
    "EMAWeightAveraging": beside(lambda: EMAWeightAveraging(decay=0.5), validation=True),
    "late EMAWeightAveraging": beside(lambda: EMAWeightAveraging(update_starting_at_step=6), validation=True),
    "StochasticWeightAveraging": beside(lambda: StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)),
    "ModelPruning": beside(lambda: ModelPruning("l1_unstructured", amount=0.5)),
    "GradientAccumulationScheduler": beside(lambda: GradientAccumulationScheduler({0: 2, 1: 1})),
    "LambdaCallback": beside(lambda: LambdaCallback(on_train_start=lambda trainer, module: torch.rand(1))),
    "Timer": beside(lambda: Timer({"hours": 1})),
    "summaries": Case({"enable_model_summary": True}, callbacks=lambda: [RichModelSummary()]),
    "plain summary": Case({"enable_model_summary": True}, callbacks=lambda: [ModelSummary()]),
    "rich progress bar": Case({"enable_progress_bar": True}, callbacks=lambda: [RichProgressBar()], validation=True),
    "plain progress bar": Case({"enable_progress_bar": True}, validation=True),
}
