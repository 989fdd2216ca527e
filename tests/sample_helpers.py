"""Samples that carry their numbers, and what two processes have to say."""

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from pge_lightning.errors import PGEError
from pge_lightning.probe import Probe

DATA = TensorDataset(torch.arange(100.0), torch.arange(100) % 3)
WITHOUT_LADDER = Probe(name="all", restarts=2, steps=2, batch_size=8, budgets=())


def held(pool):
    """The samples' first leaf, by which the tests tell them apart."""
    batch = pool.batch(range(len(pool)))
    return [int(value) for value in (batch if isinstance(batch, Tensor) else batch[0])]


class Numbers(Dataset):
    """Any map-style data set."""

    def __init__(self, size=100):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"inputs": torch.tensor(float(index)), "name": f"sample {index}"}


def failure(work):
    try:
        work()
    except PGEError as error:
        return str(error)
    return ""
