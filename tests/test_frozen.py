"""The head is trained, and nothing of the encoder changes."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from helpers import Points, points
from pge_lightning.app.frozen import FrozenEncoder
from pge_lightning.errors import PGEError


class Tuned(Points):
    """With weight decay for all parameters, and a note of the modes in which parts were trained."""

    def __init__(self):
        super().__init__()
        self.modes = set()

    def training_step(self, batch, batch_idx):
        self.modes.add((self.training, self.head.training, *(part.training for part in self.encoder)))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.1, weight_decay=0.5)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Tuned()
    model.encoder[1].running_mean += 1.0
    return model


def fit(model, encoder=None, epochs=2):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[FrozenEncoder(encoder)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    trainer.fit(model, DataLoader(points(), 25), DataLoader(points(20), 10))


def named(module):
    return [name for name, _ in module.named_parameters() if name.startswith("encoder.")]


@pytest.mark.parametrize("encoder", [None, "encoder", "encoder.*", named])
def test_nothing_of_the_encoder_changes(model, encoder):
    before = copy.deepcopy(model.state_dict())
    fit(model, encoder)
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}
    assert model.modes == {(True, True, *[False] * 5)}  # without dropout, after a validation, too


def test_equals_training_a_layer_on_the_encoders_features(model):
    inputs, classes = points().tensors
    with torch.no_grad():
        features = copy.deepcopy(model.encoder).eval()(inputs)
    head = copy.deepcopy(model.head)
    optimizer = torch.optim.AdamW(head.parameters(), 0.1, weight_decay=0.5)
    for _ in range(3):
        for batch in torch.arange(100).split(25):
            optimizer.zero_grad()
            F.cross_entropy(head(features[batch]), classes[batch]).backward()
            optimizer.step()
    fit(model, epochs=3)
    torch.testing.assert_close(model.head.weight, head.weight)
    torch.testing.assert_close(model.head.bias, head.bias)


def test_a_model_without_a_head_is_refused(model):
    with pytest.raises(PGEError, match=r"Expected a head to train.*Name the part"):
        fit(model, "")


def test_a_model_whose_encoder_has_no_name_is_refused(model):
    model.body, model.encoder = model.encoder, nn.Identity()
    with pytest.raises(PGEError, match="Name the transferred part"):
        fit(model)
