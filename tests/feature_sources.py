"""Libraries of sources that are opened: sound ones, and ones that break in different ways."""

from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from pge_lightning import storage
from pge_lightning.encoder import HEAD, encoder_state, linear_head
from pge_lightning.estimators import Target
from pge_lightning.library import Library
from pge_lightning.source import SourceFacts
from trainer_helpers import Net, add_source, make_data, make_loader

FACTS = SourceFacts("encoder", 3, 128, "val_acc", 0.5, 1.0, 0.1, "2025-01-01T00:00:00+00:00")
MARK = 7.0


class PickyLinear(nn.Linear):
    """Will not run on weights of one kind."""

    def forward(self, x):
        if self.bias[0] == MARK:
            raise ZeroDivisionError("these weights are not to my taste")
        return super().forward(x)


class Picky(Net):
    """Has a layer that is particular."""

    def __init__(self):
        super().__init__()
        self.encoder[0] = PickyLinear(6, 8)


def net(seed, kind=Picky):
    torch.manual_seed(seed)
    return kind()


def trained(seed, steps=60):
    """A network that has learned the rule of a seed."""
    module, (x, y, _) = net(seed), make_data(seed, 256).tensors
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    module.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module


def put(library, name, module, encoder="encoder", head=True, data=None):
    """Register a module's encoder, its head where it is one linear layer, and signatures of a seed's data if asked."""
    extras = {HEAD: library.put_extra(name, HEAD, linear_head(module, encoder))} if head else {}
    source = None if data is None else add_source(library.root, name, seed=data, module=module, encoder=encoder)
    files = [entry.file for entry in source.signatures] if source else []
    return library.register(name, encoder_state(module, encoder), FACTS, files, overwrite=True, extras=extras)


@torch.no_grad()
def _raising(module):
    module.encoder[0].bias[0] = MARK


@torch.no_grad()
def _nan(module):
    module.encoder[4].weight.fill_(torch.nan)


BREAKS = {"raises": _raising, "is nan": _nan, "is cut": None, "is of another width": None}
REASONS = {
    "raises": "these weights are not to my taste",
    "is nan": "finite features, but 256 of 256 are not",
    "is cut": "SHA-256",
    "is of another width": "whole encoder, but 5 of its parameters",
}


def put_broken(library, kind, data=None):
    """Register a source whose weights break, under its kind as a name; signatures of it are sound."""
    name = f"broken-{kind.replace(' ', '-')}"
    module = Net(width=12) if kind == "is of another width" else net(3)
    if BREAKS[kind] is not None:
        BREAKS[kind](module)
    put(library, name, module, data=data)
    if kind == "is cut":
        (file,) = Path(library.root, name).glob("encoder-*")
        file.write_bytes(file.read_bytes()[:-9])
    return name


def about(library, data=None, model=None, **options):
    data = make_loader(shuffle=False) if data is None else data
    options = {"encoder": "encoder", **options}
    return Target(net(9) if model is None else model, data, library, **options)


@contextmanager
def reading(monkeypatch):
    """The names of the sources whose weights are really read meanwhile, one entry per reading."""
    read, plainly = [], storage.read_bytes

    def noting(fs, path, *end):
        if Path(path).name.startswith("encoder-"):
            read.append(Path(path).parent.name)
        return plainly(fs, path, *end)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", noting)
        yield read


def library_of(folder, **modules):
    library = Library(folder)
    for name, module in modules.items():
        put(library, name, module)
    return library
