"""Representations learnt by comparing samples, or from what was hidden of them."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from zoo.kind import SAMPLES, Kind, Task, labelled, loader, seeded


def perceptron():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8))


class Contrastive(Task):
    """SimCLR: two noisy views of a sample are to be told from those of all others."""

    def __init__(self, size):
        super().__init__()
        self.encoder, self.head = perceptron(), nn.Sequential(nn.Linear(8, size), nn.ReLU(), nn.Linear(size, size))

    def training_step(self, batch, batch_idx):
        (inputs,) = batch
        views = torch.cat([inputs + 0.1 * torch.randn_like(inputs), inputs * (torch.rand_like(inputs) > 0.1)])
        features = F.normalize(self.head(self.encoder(views)), dim=1)
        likeness = (features @ features.T / 0.5).fill_diagonal_(-torch.inf)
        return F.cross_entropy(likeness, torch.arange(len(views)).roll(len(inputs)))


class Momentum(Task):
    """MoCo: a teacher that follows the encoder slowly fills a queue of features."""

    def __init__(self, size):
        super().__init__()
        self.save_hyperparameters()  # the queue's start is drawn, too, and only the constructor can do that
        self.encoder, self.head = perceptron(), nn.Linear(8, 4)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(size * BANK, 4), dim=1))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def follow(self):
        for slow, fast in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            slow.lerp_(fast, 0.1)

    def training_step(self, batch, batch_idx):
        (inputs,) = batch
        self.follow()
        queries = F.normalize(self.head(self.encoder(inputs + 0.1 * torch.randn_like(inputs))), dim=1)
        with torch.no_grad():
            keys = F.normalize(self.head(self.teacher(inputs)), dim=1)
        logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ self.queue.T.clone()], dim=1)
        self.queue[(self.at + torch.arange(len(keys))) % len(self.queue)] = keys
        self.at += len(keys)
        return F.cross_entropy(logits / 0.2, torch.zeros(len(inputs), dtype=torch.long))


class Triplets(Task):
    """Metric learning: a sample, one of its class, and one of another."""

    def __init__(self, size):
        super().__init__()
        self.encoder, self.head = perceptron(), nn.Linear(8, size)
        self.margin = nn.TripletMarginWithDistanceLoss(distance_function=nn.PairwiseDistance(), margin=2.0)

    def training_step(self, batch, batch_idx):
        return self.margin(*(self.head(self.encoder(part)) for part in batch))


class Masked(nn.Module):
    """Replaces hidden patches by a learnt token."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(8))
        self.patches, self.mix = nn.Linear(3, 8), nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)

    def reset_parameters(self):
        nn.init.zeros_(self.token)

    def forward(self, patches, hidden):
        return self.mix(torch.where(hidden[..., None], self.token, self.patches(patches)))


class Reconstruction(Task):
    """A masked auto-encoder: the loss is that of the patches which were hidden."""

    def __init__(self, _):
        super().__init__()
        self.encoder, self.head = Masked(), nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        patches = batch[0].unflatten(1, (4, 3))
        hidden = torch.rand(patches.shape[:2]) < 0.5
        error = (self.head(self.encoder(patches, hidden)) - patches).square().mean(2)
        return {"loss": (error * hidden).sum() / hidden.sum().clamp(min=1), "hidden": hidden.sum()}


BANK = 8


def unlabelled(features):
    return lambda seed, _: loader(labelled(seed, 2, features)[0] * torch.linspace(0.2, 1 + seed, features))


def triplets(seed, _):
    anchor = torch.randn(SAMPLES, 6, generator=seeded(seed))
    return loader(anchor, anchor + 0.1, anchor.roll(1 + seed, 1))


KINDS = [
    Kind("Contrastive with two views (SimCLR)", Contrastive, unlabelled(6)),
    Kind("Momentum teacher with a queue (MoCo)", Momentum, unlabelled(6)),
    Kind("Metric learning with triplets", Triplets, triplets),
    Kind("Masked reconstruction (MAE)", Reconstruction, unlabelled(12)),
]
