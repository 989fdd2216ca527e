"""Collecting and selecting in a loop of Fabric: on one process and on two, with the module wrapped or plain."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pge_lightning.collect import collect_signature
from pge_lightning.library import Library
from pge_lightning.load import load_encoder
from pge_lightning.select import SourceSelector
from trainer_helpers import TINY, add_source, differing, frozen, generators, make_loader, plain_loss, randomness


class Part(nn.Module):
    """No LightningModule: batch norm and dropout, a forward pass and nothing else."""

    def __init__(self, classes=3):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 4))
        self.head = nn.Linear(4, classes)

    def forward(self, x):
        return self.head(self.encoder(x))


def same(one, other):
    one.check_comparable(other)
    assert (one.data, one.samples, one.starts) == (other.data, other.samples, other.starts)
    return all(torch.allclose(stack, other.units[name], rtol=0, atol=1e-6) for name, stack in one.units.items())


def trained(fabric, before=None):
    """Two epochs in a loop of one's own; what they leave behind, and what was found before the first step."""
    fabric.seed_everything(1, verbose=False)
    plain = Part()
    model, optimizer = fabric.setup(plain, torch.optim.Adam(plain.parameters(), lr=1e-2))
    data = make_loader(generator=torch.Generator().manual_seed(fabric.global_rank))
    loader = fabric.setup_dataloaders(data)
    found = before(model, plain, loader) if before else None
    seen, losses = [], []
    for _ in range(2):
        for x, y, number in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            fabric.backward(loss)
            optimizer.step()
            seen.append(number.tolist())
            losses.append(loss.detach())
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "modes": [part.training for part in model.modules()],
        "seen": seen,
        "losses": losses,
        "randomness": randomness(),
        "generators": generators(data),
        "passes": loader._num_iter_calls,
    }
    return frozen(state), found


def collected(model, plain, loader, distributed=False):
    """Signatures with the module and the loader as Fabric wraps them, and with the plain module."""
    return [
        collect_signature(module, loader, probe=TINY, loss_fn=plain_loss, distributed=distributed)
        for module in (model, plain)
    ]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_collecting_in_a_loop_leaves_training_bit_identical(precision):
    def fabric():
        return L.Fabric(accelerator="cpu", devices=1, precision=precision)

    expected, _ = trained(fabric())
    found, (wrapped, plain) = trained(fabric(), collected)
    assert differing(expected, found) == []
    alone = collect_signature(Part(), make_loader(), probe=TINY, loss_fn=plain_loss)
    assert same(wrapped, alone)
    assert same(plain, alone)


def in_two_processes(fabric, folder):
    """On each rank: training with and without collecting, and a selection; all that was found goes to a file."""
    torch.set_num_threads(1)
    expected, _ = trained(fabric)
    found, signatures = trained(fabric, lambda *loop: collected(*loop, distributed=True))
    alone = copy.copy(signatures[0])
    if fabric.global_rank == 0:  # no other process has to take part
        alone = collect_signature(Part(), make_loader(), probe=TINY, loss_fn=plain_loss)
    torch.manual_seed(2 + fabric.global_rank)
    model = fabric.setup(Part())
    place = folder / "library" if fabric.global_rank == 0 else folder / "no such disk"
    selector = SourceSelector(place, probe=TINY, loss_fn=plain_loss, verbose=False)
    selection = selector.select(model, fabric.setup_dataloaders(make_loader()), distributed=True)
    result = {
        "differing": differing(expected, found),
        "signatures": signatures,
        "alone": alone,
        "source": selection.source,
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
    }
    torch.save(result, folder / f"{fabric.global_rank}.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fabric")
    for seed, name in enumerate(["near", "far", "farther"]):
        add_source(folder / "library", name, seed, probe=TINY, module=Part())
    fabric = L.Fabric(accelerator="cpu", devices=2, strategy="ddp_fork", precision="bf16-mixed")
    fabric.launch(in_two_processes, folder)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_processes_train_as_without_collecting(two_processes):
    _, results = two_processes
    assert [result["differing"] for result in results] == [[], []]


def test_two_processes_collect_the_signature_of_one(two_processes):
    _, results = two_processes
    alone = collect_signature(Part(), make_loader(), probe=TINY, loss_fn=plain_loss)
    for result in results:
        assert all(same(signature, alone) for signature in result["signatures"])
    assert same(results[0]["alone"], alone)


def test_two_processes_select_and_load_the_same_source(two_processes):
    folder, results = two_processes
    alone = SourceSelector(folder / "library", probe=TINY, loss_fn=plain_loss, verbose=False).select(
        Part(), make_loader()
    )
    stored = Library(folder / "library").open(alone.source).load_weights()
    for result in results:
        assert result["source"] == alone.source
        assert all(torch.equal(result["weights"][name], value) for name, value in stored.items())


def test_load_raw_and_load_encoder_put_the_same_values_into_a_wrapped_module(tmp_path):
    fabric = L.Fabric(accelerator="cpu", devices=1)
    source = add_source(tmp_path / "library", "near", probe=TINY, module=Part())
    torch.save(source.load_weights(), tmp_path / "weights.pt")
    raw, ours = fabric.setup(Part()), fabric.setup(Part())
    ours.load_state_dict(raw.state_dict())
    fabric.load_raw(tmp_path / "weights.pt", raw, strict=False)
    report = load_encoder(ours, source.load_weights())
    assert frozen(ours.state_dict()) == frozen(raw.state_dict())
    assert report.left == ("head.weight", "head.bias")
