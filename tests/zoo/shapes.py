"""Modules and steps of unusual make: normed weights, late weights, several loaders, no Lightning."""

import warnings

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from zoo.kind import Kind, Task, labelled, loader


class Points(Task):
    def __init__(self, classes):
        super().__init__()
        self.encoder, self.head = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8)), nn.Linear(8, classes)

    def forward(self, inputs):
        return self.head(self.encoder(inputs).relu())

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


class Normed(Points):
    def __init__(self, classes):
        super().__init__(classes)
        self.encoder[0] = parametrizations.weight_norm(self.encoder[0])
        self.encoder[2] = parametrizations.spectral_norm(self.encoder[2])


class NormedAsBefore(Points):
    """The weight norm of old, which hangs a result on the module that no deep copy takes."""

    def __init__(self, classes):
        super().__init__(classes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.encoder[0] = nn.utils.weight_norm(self.encoder[0])


class PartlyFrozen(Points):
    """A layer that was pretrained, the same everywhere, below one that is trained."""

    def __init__(self, classes):
        super().__init__(classes)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.encoder[0] = nn.Linear(6, 8).requires_grad_(False)


class Lazy(Points):
    def __init__(self, classes):
        Task.__init__(self)
        self.encoder = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(8))
        self.head = nn.LazyLinear(classes)


class Configured(Points):
    """Builds its layers in the hook that sharded strategies need."""

    def __init__(self, classes):
        Task.__init__(self)
        self.classes, self.encoder = classes, None

    def configure_model(self):
        if self.encoder is None:
            self.encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
            self.head = nn.Linear(8, self.classes)


class Skipping(Points):
    def training_step(self, batch, batch_idx):
        return None if batch_idx % 2 else super().training_step(batch, batch_idx)


class WithoutNumber(Points):
    def training_step(self, batch):
        return super().training_step(batch, None)


class GivesMapping(Points):
    def training_step(self, batch, batch_idx):
        logits = self(batch[0])
        return {"loss": F.cross_entropy(logits, batch[1]), "logits": logits.detach()}


class MultiTask(Task):
    """Two tasks with a loader and a head each, on one encoder."""

    def __init__(self, classes):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU())
        self.head = nn.ModuleDict({"class": nn.Linear(8, classes), "value": nn.Linear(8, 1)})

    def training_step(self, batch, batch_idx):
        (inputs, labels), (others, values) = batch["class"], batch["value"]
        loss = F.cross_entropy(self.head["class"](self.encoder(inputs)), labels)
        return loss + F.mse_loss(self.head["value"](self.encoder(others))[:, 0], values)


def points(seed, classes):
    return loader(*labelled(seed, classes, 6))


def two_tasks(seed, classes):
    inputs, _ = labelled(seed + 50, 2, 6, samples=32)
    return {"class": points(seed, classes), "value": loader(inputs, inputs[:, : seed + 1].sum(1))}


def plain(classes):
    return nn.ModuleDict({"encoder": nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.1)), "head": nn.Linear(8, classes)})


def plain_loss(module, batch):
    return F.cross_entropy(module["head"](module["encoder"](batch[0]).relu()), batch[1])


KINDS = [
    Kind("Weight norm and spectral norm", Normed, points),
    Kind("Weight norm of old, `torch.nn.utils.weight_norm`", NormedAsBefore, points),
    Kind("Encoder with a frozen layer", PartlyFrozen, points),
    Kind("Lazy modules", Lazy, points),
    Kind("Layers built in `configure_model`", Configured, points),
    Kind("Module under `torch.compile`", lambda size: torch.compile(Points(size), backend="eager"), points),
    Kind("Several heads, several loaders", MultiTask, two_tasks),
    Kind("`training_step` that skips batches by returning None", Skipping, points),
    Kind("`training_step` without `batch_idx`", WithoutNumber, points),
    Kind("`training_step` that returns a mapping", GivesMapping, points),
    Kind("Plain nn.Module, `loss_fn`", plain, points, loss_fn=plain_loss, trainer=False),
]
