"""Training is bit-identical with and without the callback, and the comparison notices where it is not."""

import logging
import multiprocessing
import os
import random
import signal
import time
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch.nn.modules.module import register_module_forward_hook

from grid import CASES
from pge_lightning.callbacks import PrincipalGradientCallback
from trainer_helpers import QUIET, TINY, Watch, callback, differing, logger, make_data, make_loader, trace


def run(case, folder, make_ours=None):
    """The case's run from one seed; what it leaves behind, and the callbacks of ours that took part."""
    pl.seed_everything(1, verbose=False)
    module, data, made = case.module(), case.data(), []
    before, after = Watch(data), Watch(data)

    def trainer(version=0, ours=True, keep=False, **flags):
        """A Trainer with new callbacks; with a new one of ours, with the last one again, or without."""
        if make_ours and ours and not keep:
            made.append(make_ours())
        callbacks = [*case.callbacks(), before, *(made[-1:] if ours else []), after]
        defaults = {"max_epochs": 2, "enable_checkpointing": bool(case.callbacks()), "logger": logger(folder, version)}
        return pl.Trainer(**{**QUIET, **defaults, **case.flags, **flags}, default_root_dir=folder, callbacks=callbacks)

    finished = case.fit(trainer, module, data, make_loader(1, shuffle=False) if case.validation else None)
    return trace(finished, module, data, before, after), made


@pytest.mark.parametrize("name", CASES)
def test_training_is_bit_identical(name, tmp_path):
    case = CASES[name]
    expected, _ = run(case, tmp_path / "without")
    found, made = run(case, tmp_path / "with", lambda: callback(tmp_path / "library", **case.options))
    assert differing(expected, found) == []
    assert [len(ours.signatures) for ours in made] == [1, *[0] * (len(made) - 1)]
    assert (made[-1].source is not None) == case.registers
    assert expected["global_step"] > 0
    assert case.quiet or "train_loss_step" in expected["logged"]
    assert expected["start: weights"] != expected["weights"]


def _leak_step(trainer, module):
    module.log = module.log_dict = lambda *_, **__: None
    module.training_step(make_data()[:16], 0)
    del module.log, module.log_dict


def _leak_weights(trainer, module):
    with torch.no_grad():
        next(module.parameters()).mul_(1 + 1e-6)


def _leave_gradient(trainer, module):
    next(module.parameters()).grad = torch.zeros_like(next(module.parameters()))


def _step_once(trainer, module):
    unit = next(module.parameters())
    empty = {"exp_avg": torch.zeros_like(unit), "exp_avg_sq": torch.zeros_like(unit)}
    trainer.optimizers[0].state[unit].update(step=torch.tensor(1.0), **empty)


# What is left behind, by the part of the trace that shows it right after the phase.
LEAKS = {
    "weights": (_leak_weights, "start: weights"),
    "buffers": (lambda trainer, module: module.encoder[1].running_mean.add_(1e-6), "start: buffers"),
    "non-persistent buffer": (lambda trainer, module: module.drift.add_(1e-6), "start: buffers"),
    "torch": (lambda trainer, module: torch.rand(1), "start: randomness"),
    "numpy": (lambda trainer, module: np.random.rand(), "start: randomness"),
    "python": (lambda trainer, module: random.random(), "start: randomness"),
    "loader's generator": (lambda trainer, module: next(iter(trainer.train_dataloader)), "start: generators"),
    "fetched batch": (lambda trainer, module: next(trainer.fit_loop._data_fetcher), "attributes"),
    "logged metric": (lambda trainer, module: module.log("pge", 1.0), "callback_metrics"),
    "logger": (lambda trainer, module: trainer.logger.log_metrics({"pge": 1.0}, step=0), "logged"),
    "no logger": (lambda trainer, module: setattr(trainer, "loggers", [DummyLogger()]), "start: trainer"),
    "attribute": (lambda trainer, module: vars(module).update(calls=1), "start: attributes"),
    "attribute of a part": (lambda trainer, module: vars(module.encoder[1]).update(momentum=0.2), "start: attributes"),
    "current hook": (lambda trainer, module: vars(module).update(_current_fx_name="x"), "start: private"),
    "learning rate": (lambda trainer, module: trainer.optimizers[0].param_groups[0].update(lr=0.1), "start: optimizer"),
    "optimizer state": (_step_once, "start: optimizer"),
    "scheduler": (lambda trainer, module: trainer.lr_scheduler_configs[0].scheduler.step(), "start: schedulers"),
    "gradient": (_leave_gradient, "start: gradients"),
    "requires_grad": (lambda trainer, module: module.head.bias.requires_grad_(False), "start: requires_grad"),
    "mode": (lambda trainer, module: module.encoder[3].eval(), "start: modes"),
    "metric": (lambda trainer, module: module.accuracy.update(torch.eye(3), torch.arange(3)), "start: metrics"),
    "muted log": (lambda trainer, module: vars(module).update(log=lambda *_, **__: None), "start: methods"),
    "hook": (lambda trainer, module: module.head.register_forward_hook(print), "start: hooks"),
    "stop": (lambda trainer, module: setattr(trainer, "should_stop", True), "start: trainer"),
    "a step on the module itself": (_leak_step, "start: attributes"),
    "no gradients": (lambda trainer, module: torch.set_grad_enabled(False), "process: grad mode"),
    "anomaly detection": (lambda trainer, module: torch.autograd.set_detect_anomaly(True), "process: grad mode"),
    "default dtype": (lambda trainer, module: torch.set_default_dtype(torch.float64), "process: default dtype"),
    "autocast": (lambda trainer, module: torch.set_autocast_enabled("cpu", True), "process: autocast"),
    "threads": (lambda trainer, module: torch.set_num_threads(2), "process: threads"),
    "deterministic": (lambda trainer, module: torch.use_deterministic_algorithms(True), "process: deterministic"),
    "environment": (lambda trainer, module: os.environ.update(PGE_LEAK="1"), "process: environment"),
    "folder": (lambda trainer, module: os.chdir(trainer.default_root_dir), "process: folder"),
    "warnings": (lambda trainer, module: warnings.simplefilter("ignore", FutureWarning), "process: warnings"),
    "signal handler": (lambda trainer, module: signal.signal(signal.SIGUSR1, lambda *_: None), "process: signals"),
    "log level": (lambda trainer, module: logging.getLogger("lightning").setLevel(1), "process: logging"),
    "hook of all modules": (
        lambda trainer, module: register_module_forward_hook(lambda *_: None),
        "process: global hooks",
    ),
    "process": (lambda trainer, module: LEFT.append(sleeper()), "process: processes"),
}
LEFT: list[Any] = []


def sleeper():
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    process.start()
    return process


@pytest.fixture
def mended(monkeypatch):
    """Puts the process back after what a leak did to it."""
    monkeypatch.chdir(os.getcwd())
    before, handler, level = dict(os.environ), signal.getsignal(signal.SIGUSR1), logging.getLogger("lightning").level
    yield
    for process in LEFT:
        process.kill()
        process.join()
    LEFT.clear()
    os.environ.clear()
    os.environ.update(before)
    signal.signal(signal.SIGUSR1, handler)
    logging.getLogger("lightning").setLevel(level)
    torch.set_grad_enabled(True)
    torch.autograd.set_detect_anomaly(False)
    torch.set_default_dtype(torch.float32)
    torch.set_autocast_enabled("cpu", False)
    torch.use_deterministic_algorithms(False)
    torch.nn.modules.module._global_forward_hooks.clear()


class Leaky(PrincipalGradientCallback):
    """The callback, with one trace left on purpose."""

    leak: Callable[..., Any]

    def on_train_start(self, trainer, pl_module):
        super().on_train_start(trainer, pl_module)
        self.leak(trainer, pl_module)


@pytest.mark.usefixtures("mended")
@pytest.mark.parametrize("kind", LEAKS)
def test_the_comparison_notices_a_trace(kind, tmp_path):
    case = CASES["loader with a generator" if kind == "loader's generator" else "batch norm, dropout, torchmetrics"]
    leaky = Leaky(library=str(tmp_path / "library"), name="mnist", probe=TINY)
    leaky.leak, place = LEAKS[kind]
    expected, _ = run(case, tmp_path / "without")
    found, _ = run(case, tmp_path / "with", lambda: leaky)
    assert place in differing(expected, found)
