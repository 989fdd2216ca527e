"""Where the loss comes from."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from helpers import cross_entropy, points
from pge_lightning.errors import PGEError
from pge_lightning.loss import make_step

BATCH = tuple(points(8).tensors)


class Base(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.encoder(inputs)


class ReturnsTensor(Base):
    def training_step(self, batch, batch_idx):
        return cross_entropy(self, batch)


class ReturnsMapping(Base):
    def training_step(self, batch, batch_idx):
        return {"loss": cross_entropy(self, batch), "other": 1}


class NeedsNoNumber(Base):
    def training_step(self, batch):
        return cross_entropy(self, batch)


@pytest.mark.parametrize("kind", [ReturnsTensor, ReturnsMapping, NeedsNoNumber])
def test_training_steps_of_all_shapes(kind):
    module = kind()
    loss = make_step(module)(module, BATCH, 0)
    assert torch.equal(loss, cross_entropy(module, BATCH))
    assert loss.requires_grad


def test_the_number_of_the_batch_arrives():
    class Counts(Base):
        def training_step(self, batch, batch_idx):
            return cross_entropy(self, batch) * batch_idx if batch_idx else None

    module = Counts()
    step = make_step(module)
    assert step(module, BATCH, 0) is None
    assert torch.equal(step(module, BATCH, 3), 3 * cross_entropy(module, BATCH))


def test_a_mapping_without_loss_skips():
    class Empty(Base):
        def training_step(self, batch, batch_idx):
            return {}

    module = Empty()
    assert make_step(module)(module, BATCH, 0) is None


def test_the_step_of_the_class_runs_on_the_copy():
    """Compiled modules carry a `training_step` on the instance that stays bound to the original."""
    module, other = ReturnsTensor(), ReturnsTensor()
    other.training_step = module.training_step
    assert torch.equal(make_step(module)(other, BATCH, 0), cross_entropy(other, BATCH))


def test_loss_fn_overrules_the_training_step():
    module = ReturnsTensor()
    step = make_step(module, lambda clone, batch: clone(batch[0]).square().mean())
    assert torch.equal(step(module, BATCH, 0), module(BATCH[0]).square().mean())


class Manual(ReturnsTensor):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class FromIterator(Base):
    def training_step(self, dataloader_iter):
        return cross_entropy(self, next(dataloader_iter))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (lambda: nn.Linear(6, 3), "Expected a `loss_fn` for Linear, which is no LightningModule"),
        (Manual, "Manual optimizes by hand"),
        (FromIterator, "FromIterator takes `dataloader_iter`"),
    ],
)
def test_without_a_usable_step_there_is_an_error_with_the_cure(kind, message):
    module = kind()
    with pytest.raises(PGEError, match=rf"{message}.*Give a (`loss_fn`|function) of \(module, batch\)"):
        make_step(module)
    assert make_step(module, cross_entropy)(nn.Linear(6, 3), BATCH, 0).requires_grad
