"""Small modules and data sets that several test files use."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from pge_lightning.probe import Probe

TINY = Probe(name="tiny", restarts=3, steps=4, batch_size=16, budgets=(32, 64))


def points(samples=100, classes=3, seed=0, features=6):
    """Standard normal points, whose class is told by a random linear map."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(samples, features, generator=generator)
    return TensorDataset(inputs, (inputs @ torch.randn(features, classes, generator=generator)).argmax(1))


def cross_entropy(module, batch):
    return F.cross_entropy(module(batch[0]), batch[1])


class Points(pl.LightningModule):
    """An encoder with batch norm and dropout, and a head, which may come first."""

    def __init__(self, num_classes=3, head_first=False):
        super().__init__()
        self.save_hyperparameters()
        if head_first:
            self.head = nn.Linear(10, num_classes)
        self.encoder = nn.Sequential(
            nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 10)
        )
        if not head_first:
            self.head = nn.Linear(10, num_classes)

    def forward(self, inputs):
        return self.head(self.encoder(inputs))

    def training_step(self, batch, batch_idx):
        loss = cross_entropy(self, batch)
        self.log("loss", loss)
        self.log_dict({"same": loss})
        return loss


class Parts(nn.Module):
    """One of each kind of module that re-initialises itself in a way of its own."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(12, 10, padding_idx=0)
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True)
        self.lstm = nn.LSTM(10, 10, batch_first=True)
        self.conv = nn.Conv1d(10, 10, 3, padding=1)
        self.norm = nn.BatchNorm1d(10)
        self.linear = nn.Linear(10, 10)

    def forward(self, tokens):
        values = self.embed(tokens)
        values = self.attention(values, values, values)[0]
        values = self.conv(self.lstm(values)[0].transpose(1, 2))
        return self.linear(self.norm(values).mean(2))
