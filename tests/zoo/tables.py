"""Rows of a table: numbers and categories."""

import torch
from torch import nn
from torch.nn import functional as F
from torchmetrics.classification import MultilabelF1Score

from trainer_helpers import Net, make_loader
from zoo.kind import SAMPLES, Kind, Task, labelled, loader, seeded


class MultiLabel(Task):
    def __init__(self, labels):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU())
        self.head = nn.Linear(8, labels)
        self.f1 = MultilabelF1Score(labels)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        logits = self.head(self.encoder(inputs))
        self.f1(logits, targets.int())
        self.log("train_f1", self.f1)
        return F.binary_cross_entropy_with_logits(logits, targets)


class Columns(nn.Module):
    """An embedding per category, beside normalised numbers."""

    def __init__(self):
        super().__init__()
        self.categories = nn.ModuleList([nn.Embedding(5, 3, padding_idx=0), nn.Embedding(7, 3)])
        self.norm = nn.BatchNorm1d(4)
        self.mix = nn.Linear(10, 8)

    def forward(self, numbers, categories):
        embedded = [embedding(column) for embedding, column in zip(self.categories, categories.T, strict=True)]
        return self.mix(torch.cat([self.norm(numbers), *embedded], dim=1)).relu()


class Regression(Task):
    def __init__(self, outputs):
        super().__init__()
        self.encoder, self.head = Columns(), nn.Linear(8, outputs)

    def training_step(self, batch, batch_idx):
        numbers, categories, targets = batch
        return F.huber_loss(self.head(self.encoder(numbers, categories)), targets)


def several_labels(seed, labels):
    inputs = torch.randn(SAMPLES, 6, generator=seeded(seed))
    return loader(inputs, (inputs @ torch.randn(6, labels, generator=seeded(seed + 1)) > 0).float())


def mixed_columns(seed, outputs):
    numbers, which = labelled(seed, 5, 4)
    categories = torch.stack([which, torch.randint(0, 7, (SAMPLES,), generator=seeded(seed + 1))], dim=1)
    return loader(numbers, categories, numbers[:, :1] * (which + 1.0)[:, None].expand(-1, outputs))


KINDS = [
    Kind(
        "MLP with batch norm, dropout and torchmetrics", Net, lambda seed, _: make_loader(seed, SAMPLES, batch_size=8)
    ),
    Kind("Multi-label classifier", MultiLabel, several_labels),
    Kind("Tabular regression with embeddings of categories", Regression, mixed_columns),
]
