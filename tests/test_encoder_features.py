"""Features: found in whatever way a module takes its inputs, one vector per sample, without a trace."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, DistilBertConfig, DistilBertModel

from helpers import Points
from pge_lightning.encoder_features import encoder_module, features_of, inputs_of, labels_of
from pge_lightning.errors import PGEError

BERT = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


class Wrapped(nn.Module):
    """Prepares inputs before its encoder sees them."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.encoder(10 * x))


class WithoutForward(pl.LightningModule):
    """Calls its parts from the training step only."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(6, 4), nn.Linear(4, 2)


class WantsLabels(Wrapped):
    def forward(self, x, y):
        return self.head(self.encoder(10 * x)) + y


class Flat(nn.Module):
    """Has its layers and its head side by side, as many image models do."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.fc(self.second(self.first(x).relu()).relu()) * self.scale


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(6, 4)

    def forward(self, pixels, scale=1.0):
        return self.encoder(pixels * scale)


def test_batches_are_told_apart_into_inputs_and_labels():
    assert inputs_of([X, X + 1, 3]) is X
    assert inputs_of((X,)) is X
    assert inputs_of(X) is X
    assert list(inputs_of({"input_ids": X, "label": 1, "y": 2})) == ["input_ids"]
    assert labels_of((X, 1, 2)) == 1
    assert labels_of({"x": X, "target": 3}) == 3
    assert [labels_of(batch) for batch in (X, (X,), {"x": X})] == [None] * 3


@pytest.mark.parametrize(
    ("encoder", "name"),
    [
        (None, "encoder"),
        ("encoder.0", "encoder.0"),
        ("encoder.*", "encoder"),
        ("encoder.0.*", "encoder.0"),
        (lambda module: [name for name, _ in module.encoder[1].named_parameters(prefix="encoder.1")], "encoder.1"),
        ("*.bias", ""),
    ],
)
def test_the_submodule_that_is_the_encoder(encoder, name):
    assert encoder_module(Points(), encoder) == name


def test_what_precedes_the_encoder_takes_part():
    module = Wrapped()
    assert torch.equal(features_of(module, None, (X, None)), module.encoder(10 * X))


@pytest.mark.parametrize("kind", [WithoutForward, WantsLabels])
def test_an_encoder_that_forward_does_not_reach_is_called_by_itself(kind):
    module = kind()
    assert torch.equal(features_of(module, None, (X, None)), module.encoder(X))


def test_all_but_the_head_ends_where_the_head_begins():
    module = Flat()
    features = features_of(module, "[fs][ie]*", (X, None))
    assert torch.equal(features, module.second(module.first(X).relu()).relu())


@pytest.mark.parametrize("batch", [{"pixels": X, "more": 1}, {"x": X, "labels": 1}, {"pixels": X, "scale": 1.0}])
def test_mappings_go_in_as_the_arguments_that_are_accepted(batch):
    module = Named()
    assert torch.equal(features_of(module, None, batch), module.encoder(X))


def test_several_inputs_go_in_one_by_one():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Bilinear(6, 6, 4)

        def forward(self, left, right):
            return self.encoder(left, right)

    module = Pair()
    assert torch.equal(features_of(module, None, ((X, X + 1), None)), module.encoder(X, X + 1))


@pytest.mark.parametrize(
    ("encoder", "inputs", "width", "slow"),
    [
        (nn.Conv2d(1, 4, 3), torch.randn(5, 1, 8, 8), 4, lambda y: y.mean((2, 3))),
        (nn.Conv1d(1, 4, 3), torch.randn(5, 1, 8), 4, lambda y: y.mean(2)),
        (nn.Embedding(9, 4), torch.arange(5).repeat(3, 1).T, 4, lambda y: y.mean(1)),
        (nn.LSTM(6, 4, batch_first=True), torch.randn(5, 3, 6), 4, lambda y: y[0].mean(1)),
        (nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)), X, 1, lambda y: y.unsqueeze(1)),
        (nn.Linear(6, 4), X, 4, lambda y: y),
    ],
)
def test_whatever_is_beyond_one_vector_per_sample_is_averaged(encoder, inputs, width, slow):
    features = features_of(encoder, "", inputs)
    assert features.shape == (5, width)
    torch.testing.assert_close(features, slow(encoder(inputs)))


def test_hugging_face_outputs_give_what_they_pool_themselves():
    module = BertForSequenceClassification(BertConfig(**BERT)).eval()
    batch = {"input_ids": torch.randint(1, 32, (5, 7)), "attention_mask": torch.ones(5, 7), "labels": torch.zeros(5)}
    expected = module.bert(batch["input_ids"], batch["attention_mask"]).pooler_output
    assert torch.equal(features_of(module, None, batch), expected)


@pytest.mark.parametrize(
    "model",
    [
        BertModel(BertConfig(**BERT), add_pooling_layer=False),
        DistilBertModel(DistilBertConfig(vocab_size=32, dim=8, n_layers=1, n_heads=2, hidden_dim=8)),
    ],
)
def test_padding_has_no_part_in_the_mean_over_a_text(model):
    tokens = torch.randint(1, 32, (5, 4))
    padded = {
        "input_ids": torch.cat([tokens, torch.zeros(5, 3).long()], 1),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0, 0]] * 5),
    }
    plain = {"input_ids": tokens, "attention_mask": torch.ones(5, 4)}
    module = model.eval()
    torch.testing.assert_close(features_of(module, "", padded), features_of(module, "", plain), rtol=0, atol=1e-6)


def test_gradients_reach_the_encoder_and_no_hook_or_mode_is_left():
    module = Points()
    features_of(module, None, (X, None)).sum().backward()
    assert module.encoder[0].weight.grad is not None
    assert module.head.weight.grad is None
    assert module.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_hooks_go_where_forward_fails():
    module = Flat()
    with pytest.raises(PGEError, match=r"RuntimeError: .*Give `features=`"):
        features_of(module, "[fs][ie]*", torch.zeros(5, 7))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_what_is_no_feature_of_each_sample_is_refused():
    class Sums(nn.Module):
        def __init__(self, result):
            super().__init__()
            self.weight, self.result = nn.Parameter(torch.ones(6)), result

        def forward(self, x):
            return self.result(x * self.weight)

    with pytest.raises(PGEError, match=r"each of the 5 samples, but got shape \[6\]. Give `features=`"):
        features_of(Sums(lambda x: x.sum(0)), "", X)
    with pytest.raises(PGEError, match="but got a str"):
        features_of(Sums(lambda x: "text"), "", X)


def test_an_encoder_that_never_runs_is_told():
    class Idle(Wrapped):
        def forward(self, x):
            return x

    module = Idle()
    module.encoder.forward = None
    with pytest.raises(PGEError, match="Idle or its encoder, a Linear, to run on the inputs of a batch alone"):
        features_of(module, None, X)
