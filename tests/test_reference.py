import lightning as L
import pytest
import torch
from torch import nn

from pge_lightning.data import SklearnDigits
from pge_lightning.reference import Classifier, ImageEncoder, SeriesEncoder, TextEncoder

INPUTS = {
    ImageEncoder: torch.randn(3, 1, 28, 28),
    SeriesEncoder: torch.randn(3, 1, 50),
    TextEncoder: torch.tensor([[5, 9, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0]]),
}


def trainer(**options):
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.mark.parametrize("kind", INPUTS)
def test_encoders_map_to_their_features(kind):
    for features in (64, 20):
        encoder = kind(features=features)
        out = encoder(INPUTS[kind])
        assert encoder.features == features
        assert out.shape == (3, features)
        out.square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("kind", INPUTS)
def test_reset_parameters_covers_every_weight(kind):
    model = Classifier(kind(), num_classes=3)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(7)
    for module in [*model.encoder.modules(), model.head]:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert not any((p == 7).any() for p in model.parameters())
    assert not any((b == 7).any() for b in model.encoder.buffers())


def test_encoders_take_other_sizes():
    for size in (16, 31, 64):
        assert ImageEncoder(channels=3, width=8)(torch.randn(2, 3, size, size)).shape == (2, 64)
    for length in (1, 24, 300):
        assert SeriesEncoder(channels=2, width=8)(torch.randn(2, 2, length)).shape == (2, 64)


def test_padding_adds_nothing_to_a_text():
    encoder = TextEncoder(vocabulary=10).eval()
    short, long = torch.tensor([[3, 4, 0]]), torch.tensor([[3, 4, 0, 0, 0, 0]])
    assert torch.allclose(encoder(short), encoder(long), atol=1e-5)
    assert encoder(torch.zeros(1, 5, dtype=torch.long)).abs().sum() == 0


def test_equal_encoders_whatever_the_head():
    encoders = []
    for classes in (2, 10, 47):
        torch.manual_seed(0)
        encoders.append(Classifier(ImageEncoder(), classes).encoder.state_dict())
    assert all(torch.equal(encoders[0][name], other[name]) for other in encoders[1:] for name in other)


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizers(name, kind):
    model = Classifier(TextEncoder(), 3, lr=0.03, weight_decay=0.1, optimizer=name)
    optimizer = model.configure_optimizers()
    assert type(optimizer) is kind
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.03, 0.1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_bad_arguments():
    with pytest.raises(TypeError, match="attribute `features: int`, but Flatten has None"):
        Classifier(nn.Flatten(), 3)
    with pytest.raises(ValueError, match="`num_classes` to be at least 2, but got 1"):
        Classifier(ImageEncoder(), 1)
    with pytest.raises(ValueError, match="'adam', 'adamw' or 'sgd', but got 'lion'"):
        Classifier(ImageEncoder(), 3, optimizer="lion")


def test_it_learns_digits_and_logs_what_it_says():
    L.seed_everything(0)
    data = SklearnDigits(size=16)
    data.setup()
    model = Classifier(ImageEncoder(), data.num_classes, lr=5e-3)
    runner = trainer(max_epochs=4, limit_val_batches=4)
    runner.fit(model, data)
    assert {"train_loss", "val_loss", "val_acc"} <= runner.callback_metrics.keys()
    logged = runner.test(model, data, verbose=False)[0]["test_acc"]
    x, y = data.test_dataloader().dataset.tensors
    with torch.no_grad():
        right = (model.eval()(x).argmax(1) == y).float().mean().item()
    assert logged == pytest.approx(right, abs=1e-6)
    assert right > 0.85


def test_few_labels_of_one_batch_train():
    model = Classifier(ImageEncoder(), 10)
    start = model.head.weight.detach().clone()
    runner = trainer(max_epochs=2, limit_val_batches=0)
    runner.fit(model, SklearnDigits(size=16, labels=20))
    assert runner.global_step == 2
    assert not torch.equal(start, model.head.weight)
