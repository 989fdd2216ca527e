"""Warm-up by itself: a few steps, their mean update, and batches on their way to it."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from pge_lightning.errors import PGEError
from pge_lightning.probe import Probe
from pge_lightning.warmup import place, warm_up

BATCHES = [torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def step(module, batch, index):
    return None if index == 2 else module(batch).square().mean()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_mean_update_is_what_was_walked_over_steps_and_rate(optimizer):
    probe = Probe(restarts=1, steps=4, optimizer=optimizer, lr=0.1, batch_size=8, budgets=())
    module, plain = model(), model()
    updates = warm_up(module, ["0.weight"], BATCHES, partial(step, module), probe)
    walker = (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)(plain.parameters(), lr=0.1)
    begin = copy.deepcopy(plain.state_dict())
    for index, batch in enumerate(BATCHES):
        if (loss := step(plain, batch, index)) is not None:
            walker.zero_grad()
            loss.backward()
            walker.step()
    walked = (begin["0.weight"] - plain.state_dict()["0.weight"]) / (4 * 0.1)
    assert list(updates) == ["0.weight"]
    torch.testing.assert_close(updates["0.weight"], walked, rtol=0, atol=1e-6)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value)


@pytest.mark.parametrize("lost", [lambda *_: None, lambda module, batch, _: module(batch).sum() * torch.nan])
def test_a_warm_up_whose_loss_got_lost_is_refused(lost):
    module = model()
    with pytest.raises(PGEError, match="Expected a finite loss at every step, but got"):
        warm_up(module, ["0.weight"], BATCHES, partial(lost, module), Probe(budgets=()))


class Doubling(LightningDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {name: 2 * value for name, value in batch.items()}


def test_batches_arrive_in_float32_through_the_data_modules_hooks():
    batch = {"x": torch.ones(2, dtype=torch.float64), "y": torch.ones(2, dtype=torch.int64)}
    plain = place(nn.Linear(2, 1), batch, torch.device("cpu"), Doubling())
    assert (plain["x"].dtype, plain["y"].dtype) == (torch.float32, torch.int64)
    assert plain["x"].tolist() == [1.0, 1.0]
    doubled = place(LightningModule(), batch, torch.device("cpu"), Doubling())
    assert doubled["x"].tolist() == [2.0, 2.0]
