"""Small modules, data and runs under a real Trainer, for the tests of callbacks and selection."""

import logging
import multiprocessing
import os
import random
import re
import signal
import warnings
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, TensorDataset
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from pge_lightning.callbacks import PrincipalGradientCallback, SourceSelectionCallback
from pge_lightning.collect import collect_signature
from pge_lightning.encoder import encoder_state
from pge_lightning.library import Library
from pge_lightning.probe import Probe
from pge_lightning.source import SourceFacts

TINY = Probe(name="tiny", restarts=2, steps=3, batch_size=8, budgets=(16,))
LADDER = Probe(name="ladder", restarts=3, steps=3, batch_size=8, budgets=(16, 32, 64))
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}


class Net(pl.LightningModule):
    """Whatever a forward pass can change: batch norm, dropout, a metric, a non-persistent buffer, attributes."""

    def __init__(self, classes=3, width=8, features=6):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 4)
        )
        self.head = nn.Linear(4, classes)
        self.accuracy = MulticlassAccuracy(classes)
        self.register_buffer("drift", torch.zeros(()), persistent=False)
        self.calls, self.seen = 0, []

    def forward(self, x):
        return self.head(self.encoder(x))

    def training_step(self, batch, batch_idx):
        x, y, number = batch
        self.calls += 1
        self.seen.append(number.tolist())
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.drift += loss.detach()
        self.accuracy(logits, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_acc", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class Bomb:
    """Goes off at one step of the phase; copies of the module share it."""

    def __init__(self, step, strike):
        self.left, self.strike, self.steps = step, strike, 0

    def __deepcopy__(self, memo):
        return self

    def __call__(self):
        self.left -= 1
        if self.left == 0:
            self.steps = 0
            self.strike()
        self.steps += 1


class MinedNet(Net):
    """Draws from all global random states in each step, and takes the bomb along."""

    def __init__(self, bomb=None):
        super().__init__()
        self.bomb = bomb

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        np.random.rand(), random.random(), torch.rand(1)
        if self.bomb is not None:
            self.bomb()
        return loss


def plain_loss(module, batch):
    return F.cross_entropy(module(batch[0]), batch[1])


def make_data(seed=0, samples=64, classes=3, features=6):
    """Labels that a seed's own linear rule gives; each sample carries its number."""
    generator = torch.Generator().manual_seed(seed)
    rule = torch.randn(features, classes, generator=generator)
    x = torch.randn(samples, features, generator=generator)
    return TensorDataset(x, (x @ rule).argmax(1), torch.arange(samples))


def make_loader(seed=0, samples=64, **options):
    return DataLoader(make_data(seed, samples), **{"batch_size": 16, "shuffle": True, **options})


class Data(pl.LightningDataModule):
    """Knows its number of classes; remembers what was called on it."""

    def __init__(self, seed=0, samples=64):
        super().__init__()
        self.seed, self.samples, self.called, self.num_classes = seed, samples, [], 3

    def prepare_data(self):
        self.called.append("prepare_data")

    def setup(self, stage):
        self.called.append("setup " + stage)
        self.dataset = make_data(self.seed, self.samples)

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=16, shuffle=True)


class AugmentingData(Data):
    """Augments batches on the device, from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.generator, self.transferred = torch.Generator().manual_seed(5), 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.transferred += 1
        noise = torch.randn(batch[0].shape, generator=self.generator)
        return [batch[0] + 0.1 * noise, *batch[1:]]


class OwnSampler(Sampler):
    """Shuffles from its own generators and counts its passes."""

    def __init__(self, samples):
        self.samples, self.passes = samples, 0
        self.generator, self.numpy = torch.Generator().manual_seed(3), np.random.default_rng(3)

    def __iter__(self):
        self.passes += 1
        order = torch.randperm(self.samples, generator=self.generator)
        return iter(self.numpy.permutation(order.numpy()).tolist())

    def __len__(self):
        return self.samples


class Jitter:
    """A transformation with a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(4)

    def __call__(self, x):
        return x + 0.1 * torch.randn(x.shape, generator=self.generator)


class Augmented(Dataset):
    """Augments every read, from its own generators and those of its transformations."""

    def __init__(self, transforms=()):
        self.data, self.reads, self.transforms = make_data(), 0, list(transforms)
        self.torch, self.numpy, self.python = Jitter().generator, np.random.default_rng(4), random.Random(4)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        x, y, number = self.data[index]
        self.reads += 1
        x = x + torch.randn(x.shape, generator=self.torch) * float(self.numpy.random()) * self.python.random()
        for transform in self.transforms:
            x = transform(x)
        return x, y, number


class Stream(IterableDataset):
    """Starts anew at every pass, in an order drawn from the global state."""

    def __iter__(self):
        data = make_data()
        return (data[i] for i in torch.randperm(len(data)).tolist())


def fit(module, data=None, callbacks=(), ckpt_path=None, **flags):
    """A run of a real Trainer, without files unless asked for."""
    defaults = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
    trainer = pl.Trainer(**{**QUIET, **defaults, **flags, "callbacks": list(callbacks)})
    trainer.fit(module, make_loader() if data is None else data, ckpt_path=ckpt_path)
    return trainer


def callback(folder, name="mnist", **options):
    return PrincipalGradientCallback(library=str(folder), name=name, **{"probe": TINY, **options})


def selection(folder, **options):
    return SourceSelectionCallback(str(folder), **{"probe": TINY, "verbose": False, **options})


def near_and_far(folder):
    """A library with a source of the target's own rule and a foreign one."""
    add_source(folder, "near", seed=0, probe=TINY, samples=64)
    add_source(folder, "far", seed=5, probe=TINY, samples=64)
    return folder


def randomness():
    """All global random states."""
    return {"torch": torch.get_rng_state(), "numpy": list(np.random.get_state()), "python": random.getstate()}


def generators(data):
    """The states of whatever draws random numbers beside the global states, and the counters beside them."""
    data = data.iterables if isinstance(data, CombinedLoader) else data
    if isinstance(data, dict):
        return {name: generators(part) for name, part in data.items()}
    found = {}
    for name, value in vars(data).items() if hasattr(data, "__dict__") else ():
        if isinstance(value, (torch.Generator, np.random.Generator, random.Random, int)):
            found[name] = frozen(value)
        for part in value if name == "transforms" else [value]:
            if isinstance(part, (Dataset, Sampler, BatchSampler, Jitter)):
                found[f"{name} {type(part).__name__}"] = generators(part)
    return found


PLAIN = (bool, int, float, str, list, tuple, set, dict, np.ndarray, np.random.Generator, random.Random, torch.Generator)


def attributes(owner):
    """What an object keeps in plain Python types under public names."""
    found = vars(owner).items() if hasattr(owner, "__dict__") else ()
    return {name: value for name, value in found if isinstance(value, PLAIN) and name[0] != "_"}


def private_scalars(owner):
    """What an object notes down for itself, as Lightning does for the hook that runs at the moment."""
    scalars = (bool, int, float, str, type(None))
    return {name: value for name, value in vars(owner).items() if isinstance(value, scalars) and name[0] == "_"}


def metric_state(metric):
    return {name: value for name, value in vars(metric).items() if isinstance(value, (int, Tensor))}


def module_state(module):
    """Everything a module holds: weights, buffers, metric states, modes, attributes, hooks."""
    parts = [part for part in module.modules() if not isinstance(part, Metric)]
    hooks = [
        sorted((name, len(kept)) for name, kept in vars(part).items() if name.endswith("_hooks")) for part in parts
    ]
    return {
        "weights": dict(module.named_parameters()),
        "requires_grad": [unit.requires_grad for unit in module.parameters()],
        "gradients": [unit.grad for unit in module.parameters()],
        "buffers": dict(module.named_buffers()),
        "metrics": [metric_state(part) for part in module.modules() if isinstance(part, Metric)],
        "modes": [part.training for part in module.modules()],
        "attributes": [attributes(part) for part in parts],
        "methods": sorted(name for name in vars(module) if callable(vars(module)[name])),
        "hooks": hooks,
    }


def process_state():
    """What a library could change for the whole process."""
    filters = [(kind, str(text), category, str(place), line) for kind, text, category, place, line in warnings.filters]
    return {
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled()),
        "default dtype": torch.get_default_dtype(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "warnings": filters,
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)},
        "logging": [(logging.getLogger(name).level, len(logging.getLogger(name).handlers)) for name in LOGGERS],
        "global hooks": len(torch.nn.modules.module._global_forward_hooks),
        # Other tests leave workers of joblib, which end by themselves after minutes.
        "processes": sum("Loky" not in child.name for child in multiprocessing.active_children()),
    }


LOGGERS = ("", "lightning", "lightning.pytorch", "pge_lightning", "py.warnings")


def trainer_state(trainer, module, data):
    """What a Trainer and its module hold at one moment of a run."""
    return frozen({
        **module_state(module),
        "private": [private_scalars(part) for part in module.modules()],
        "optimizer": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "callback_metrics": dict(trainer.callback_metrics),
        "global_step": trainer.global_step,
        "progress": trainer.fit_loop.state_dict(),
        "trainer": [
            trainer.should_stop,
            trainer.num_training_batches,
            [type(each).__name__ for each in trainer.loggers],
        ],
        "randomness": randomness(),
        "generators": generators(data),
    })


class Watch(Callback):
    """Keeps what a run holds at one place of the order of callbacks, when training starts for the first time."""

    def __init__(self, data):
        self.data, self.state, self.process = data, {}, {}

    def on_train_start(self, trainer, pl_module):
        if not self.state:
            self.state, self.process = trainer_state(trainer, pl_module, self.data), process_state()


def frozen(value):
    """The same content that nothing changes later on; tensors as dtype, shape and bytes."""
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        return str(value.dtype), tuple(value.shape), plain.flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, torch.Generator):
        return frozen(value.get_state())
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [frozen(item) for item in value]
    if isinstance(value, set):
        return set(value)
    # Objects that are only equal to themselves stand for their type: two runs make them anew.
    return type(value).__qualname__ if type(value).__eq__ is object.__eq__ else value


def trace(trainer, module, data, before=None, after=None):
    """All that a finished run leaves behind, bit for bit; with two watches, also how it started."""
    path = Path(getattr(trainer.logger, "log_dir", None) or "", "metrics.csv")
    logged = path.read_text() if path.is_file() and trainer.is_global_zero else ""
    start = {f"start: {name}": value for name, value in (after.state if after else {}).items()}
    changed = (
        {f"process: {name}": before.process[name] != after.process[name] for name in before.process} if after else {}
    )
    return {**trainer_state(trainer, module, data), "logged": logged, **start, **changed}


def differing(one, other):
    """Names of the parts in which two traces differ."""
    assert one.keys() == other.keys()
    return [name for name in one if one[name] != other[name]]


def logger(folder, version=0):
    return CSVLogger(str(folder), name="log", version=version, flush_logs_every_n_steps=1)


def add_source(folder, name, seed=0, probe=LADDER, budgets=None, module=None, encoder="encoder", samples=128):
    """Register an untrained source with real signatures of its own data; no Trainer needed."""
    torch.manual_seed(seed)
    module, library = module or Net(), Library(folder)
    files = []
    for budget in budgets or probe.budgets or (samples,):
        loader = make_loader(seed, samples)
        signature = collect_signature(module, loader, loss_fn=plain_loss, probe=probe, budget=budget, encoder=encoder)
        files.append(library.put_signature(name, signature))
    created = datetime.now(timezone.utc).isoformat()
    facts = SourceFacts(encoder, 3, samples, "val_acc", 0.5 + seed / 100, 1.0, 0.1, created)
    return library.register(name, encoder_state(module, encoder), facts, files)


def failing(line, pattern):
    """Whether a line of a ranking failed for the reason meant."""
    return line.status == "failed" and line.estimate is None and re.search(pattern, line.reason) is not None


@contextmanager
def handled_interrupts():
    """Lightning ignores Ctrl-C after the first one, as background processes do; the test session must not."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
