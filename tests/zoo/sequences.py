"""Series and texts through recurrent, convolutional and attention layers."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from pge_lightning.reference import Classifier, SeriesEncoder
from zoo.kind import SAMPLES, Kind, Task, labelled, loader, seeded, sentences


class Tagger(Task):
    """A label per word; padded words have the label -100, and packed sequences leave them out."""

    def __init__(self, labels):
        super().__init__()
        self.encoder = nn.ModuleDict({
            "words": nn.Embedding(20, 8, padding_idx=0),
            "lstm": nn.LSTM(8, 8, batch_first=True, bidirectional=True),
        })
        self.head = nn.Linear(16, labels)

    def training_step(self, batch, batch_idx):
        tokens, lengths, labels = batch
        embedded = self.encoder["words"](tokens)
        packed = pack_padded_sequence(embedded, lengths.cpu(), batch_first=True, enforce_sorted=False)
        hidden, _ = pad_packed_sequence(self.encoder["lstm"](packed)[0], batch_first=True)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), labels.flatten(), ignore_index=-100)


class RecurrentRegression(Task):
    def __init__(self, outputs):
        super().__init__()
        self.encoder, self.head = nn.GRU(2, 8, num_layers=2, dropout=0.1, batch_first=True), nn.Linear(8, outputs)

    def training_step(self, batch, batch_idx):
        series, targets = batch
        return F.mse_loss(self.head(self.encoder(series)[0][:, -1]), targets)


class Attention(nn.Module):
    """Words with learnt positions, behind a learnt token that gathers what they say."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(32, 8, padding_idx=0)
        self.first, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(0.02 * torch.randn(7, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def reset_parameters(self):
        nn.init.normal_(self.first)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, tokens):
        words = torch.cat([self.first.expand(len(tokens), -1, -1), self.words(tokens)], dim=1)
        return self.layers(words + self.positions)[:, 0]


class TextClassifier(Task):
    def __init__(self, classes):
        super().__init__()
        self.encoder, self.head = Attention(), nn.Linear(8, classes)

    def training_step(self, batch, batch_idx):
        tokens, labels = batch
        return F.cross_entropy(self.head(self.encoder(tokens)), labels)


def _padded(rows):
    tokens, labels = zip(*rows, strict=True)
    lengths = torch.tensor([len(row) for row in tokens])
    return pad_sequence(tokens, True), lengths, pad_sequence(labels, True, -100)


def tagged(seed, labels):
    generator = seeded(seed)
    rows = [torch.randint(1, 20, (2 + number % 5,), generator=generator) for number in range(SAMPLES)]
    return loader([(row, (row + seed) % labels) for row in rows], collate_fn=_padded)


def walks(seed, outputs):
    series = torch.randn(SAMPLES, 6, 2, generator=seeded(seed)).cumsum(1)
    return loader(series, series[:, -2:].mean((1, 2), keepdim=False)[:, None].expand(-1, outputs) * (seed + 1))


KINDS = [
    Kind(
        "Series classifier, convolutions over time",
        lambda classes: Classifier(SeriesEncoder(width=8, features=8), classes),
        lambda seed, classes: loader(*labelled(seed, classes, 1, 16)),
    ),
    Kind("Sequence labelling, LSTM over packed sequences of any length", Tagger, tagged),
    Kind("Regression of series, GRU", RecurrentRegression, walks),
    Kind(
        "Text classifier, nn.TransformerEncoder with class and position tokens",
        TextClassifier,
        lambda seed, classes: loader(*sentences(seed, classes)),
    ),
]
