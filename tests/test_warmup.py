"""Warm-up by itself: a few steps, their mean update, and batches on their way to it."""

import copy
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn
from torch.utils.checkpoint import checkpoint

from pge_lightning.collect.warmup import check_updates, place, warm_up
from pge_lightning.errors import PGEError
from pge_lightning.probe import Probe

BATCHES = [torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


def step(module, batch, index):
    return None if index == 2 else module(batch).square().mean()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_row_and_the_start_give_what_was_walked(optimizer):
    probe = Probe(restarts=1, steps=4, optimizer=optimizer, lr=0.1, batch_size=8, budgets=())
    module, plain = model(), model()
    begin = copy.deepcopy(plain.state_dict())
    row = {"0.weight": torch.full((4, 3), 7.0)}
    warm_up(module, row, BATCHES, partial(step, module), probe)
    walker = (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)(plain.parameters(), lr=0.1)
    for index, batch in enumerate(BATCHES):
        if (loss := step(plain, batch, index)) is not None:
            walker.zero_grad()
            loss.backward()
            walker.step()
    walked = begin["0.weight"] - plain.state_dict()["0.weight"]
    expected = walked / 0.1 if optimizer == "sgd" else walked - begin["0.weight"]
    torch.testing.assert_close(row["0.weight"], 7.0 + expected, rtol=0, atol=1e-6)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value)
    assert all(unit.grad is None for unit in module.parameters())


@pytest.mark.parametrize("hidden", [True, False])
def test_checkpointing_that_hides_weights_is_refused(hidden):
    module, probe = model(), Probe(restarts=1, steps=4, batch_size=8, budgets=())
    row = {"0.weight": torch.zeros(4, 3)}

    def checkpointed(batch, index):
        first = checkpoint(module[0], batch.clone().requires_grad_(), use_reentrant=hidden)
        return module[2](first).square().mean()

    if hidden:
        with pytest.raises(PGEError, match=r"In step 0: Expected a loss whose graph .* `use_reentrant=False`"):
            warm_up(module, row, BATCHES, checkpointed, probe)
    else:
        warm_up(module, row, BATCHES, checkpointed, probe)
        assert row["0.weight"].all()


def test_complex_units_are_walked_as_pairs_of_real_numbers():
    probe = Probe(restarts=1, steps=4, optimizer="sgd", lr=0.1, batch_size=8, budgets=())
    module = nn.Module()
    module.wave = nn.Parameter(torch.tensor([1.0 + 2.0j, 0.5j]))
    row = {"wave": torch.zeros(2, 2)}
    start = torch.view_as_real(module.wave.detach()).clone()
    warm_up(module, row, BATCHES, lambda batch, index: (module.wave * module.wave.conj()).real.sum(), probe)
    walked = start - torch.view_as_real(module.wave.detach())
    torch.testing.assert_close(row["wave"], walked / 0.1, rtol=0, atol=1e-6)
    assert row["wave"].all(1).tolist() == [True, False]


def lost(module, batch, _):
    return module(batch).sum() * torch.nan


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda *_: None, "Expected a loss from one step at least, but got None for every batch"),
        (lost, r"Expected a finite loss at every step, but got \[nan, nan, nan, nan\]"),
    ],
)
def test_a_warm_up_whose_loss_got_lost_is_refused(step, message):
    module = model()
    with pytest.raises(PGEError, match=message):
        warm_up(module, {"0.weight": torch.zeros(4, 3)}, BATCHES, partial(step, module), Probe(budgets=()))


def test_a_step_that_fails_is_named_with_its_cause():
    def fails(batch, index):
        if index == 2:
            raise KeyError("class_weights")
        return module(batch).sum()

    module = model()
    with pytest.raises(
        PGEError, match=r"In step 2: .* it raised KeyError: 'class_weights'\. .* give a `loss_fn`"
    ) as caught:
        warm_up(module, {"0.weight": torch.zeros(4, 3)}, BATCHES, fails, Probe(budgets=()))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SIGTERMException])
def test_interruptions_stay_what_they_are(error):
    def interrupted(batch, index):
        raise error

    with pytest.raises(error):
        warm_up(model(), {"0.weight": torch.zeros(4, 3)}, BATCHES, interrupted, Probe(budgets=()))


def test_updates_that_say_nothing_are_refused():
    check_updates({"one": torch.zeros(2), "other": torch.tensor([0.0, 1.0])})
    with pytest.raises(PGEError, match="those of unit 'other' are not"):
        check_updates({"one": torch.ones(2), "other": torch.tensor([0.0, torch.inf])})
    with pytest.raises(PGEError, match="moved none of its units"):
        check_updates({"one": torch.zeros(2)})


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


def test_tensors_from_inference_mode_can_be_trained_on():
    with torch.inference_mode():
        batch = torch.ones(2, 3)
    placed = place(nn.Linear(3, 1), [batch], torch.device("cpu"))
    layer = nn.Linear(3, 1)
    layer(placed[0]).sum().backward()
    assert layer.weight.grad.tolist() == [[2.0, 2.0, 2.0]]
