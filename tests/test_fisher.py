"""Probes of the Fisher information: what is summed up behind a fitted head, and that it leaves no trace."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from grid import CASES
from helpers import Points, points
from pge_lightning.collect import collect_signature
from pge_lightning.collect.fisher import add_fisher
from pge_lightning.errors import IncomparableError, PGEError
from pge_lightning.functional.distances import task2vec_distance
from pge_lightning.library import Library
from pge_lightning.probe import PROBES, Probe
from test_exactness import run
from trainer_helpers import TINY, callback, differing

PROBE = Probe(name="fisher", restarts=1, steps=4, lr=0.1, batch_size=8, budgets=(), statistic="fisher")
COLLECTED = Probe(name="fisher", restarts=2, steps=20, lr=2e-2, batch_size=8, budgets=(64,), statistic="fisher")


def batches(size=8):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, 3, generator=generator), torch.randint(2, (size,), generator=generator)) for _ in range(4)
    ]


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def step_of(module):
    return lambda batch, index: F.cross_entropy(module(batch[0]), batch[1])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_head_is_fitted_to_an_encoder_at_rest_before_gradients_are_squared(optimizer):
    module, other = model(), model()
    row = {"0.weight": torch.full((4, 3), 7.0), "0.bias": torch.zeros(4)}
    add_fisher(module, row, batches, step_of(module), replace(PROBE, optimizer=optimizer))
    head = list(other[2].parameters())
    walker = (torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam)(head, lr=0.1)
    for batch in batches():
        walker.zero_grad()
        step_of(other)(batch, 0).backward()
        walker.step()
    expected = torch.full((4, 3), 7.0)
    for batch in batches():
        (gradient,) = torch.autograd.grad(step_of(other)(batch, 0), [other[0].weight])
        expected += 8 * gradient.square()
    torch.testing.assert_close(row["0.weight"], expected)
    assert (row["0.bias"] > 0).all()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name])
        assert torch.equal(value, model().state_dict()[name]) == name.startswith("0.")
    assert all(unit.grad is None and unit.requires_grad for unit in module.parameters())


def test_batches_of_one_sample_give_the_mean_of_squared_gradients_exactly():
    module, row = model(), {"0.weight": torch.zeros(4, 3)}
    add_fisher(module, row, partial(batches, 1), step_of(module), replace(PROBE, batch_size=1))
    inputs, labels = (torch.cat(column) for column in zip(*batches(1), strict=True))
    hidden = torch.tanh(module[0](inputs))
    errors = torch.softmax(module[2](hidden), 1) - F.one_hot(labels, 2)
    signals = (errors @ module[2].weight) * (1 - hidden.square())
    torch.testing.assert_close(row["0.weight"], (signals.square().T @ inputs.square()).detach())


def test_a_module_without_a_head_is_measured_as_it_is():
    module = nn.Linear(3, 2)
    before, row = copy.deepcopy(module.state_dict()), {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    add_fisher(module, row, batches, step_of(module), PROBE)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all((value > 0).all() for value in row.values())


def test_complex_units_keep_the_parts_of_each_number():
    module = nn.Module()
    module.wave = nn.Parameter(torch.tensor([1.0 + 2.0j, 0.5j]))
    row = {"wave": torch.zeros(2, 2)}
    add_fisher(module, row, batches, lambda batch, index: (module.wave * module.wave.conj()).real.sum(), PROBE)
    assert row["wave"].tolist() == [[4 * 8 * 4.0, 4 * 8 * 16.0], [0.0, 4 * 8 * 1.0]]


def test_skipped_batches_add_nothing_and_unused_units_stay_at_zero():
    module, row = model(), {"0.weight": torch.zeros(4, 3), "1.idle": torch.zeros(2)}
    module[1].idle = nn.Parameter(torch.ones(2))
    step = step_of(module)
    add_fisher(module, row, batches, lambda batch, index: None if index else step(batch, index), PROBE)
    assert (row["0.weight"] > 0).all()
    assert not row["1.idle"].any()


def test_a_loss_that_got_lost_or_hides_weights_is_refused():
    module = model()
    with pytest.raises(PGEError, match="Expected a loss from one step at least"):
        add_fisher(module, {"0.weight": torch.zeros(4, 3)}, batches, lambda *_: None, PROBE)

    def hidden(batch, index):
        first = checkpoint(module[0], batch[0].clone().requires_grad_(), use_reentrant=True)
        return module[2](first).square().mean()

    with pytest.raises(PGEError, match=r"In step 0: Expected a loss whose graph .* `use_reentrant=False`"):
        add_fisher(module, {"0.weight": torch.zeros(4, 3)}, batches, hidden, PROBE)
    assert all(unit.requires_grad for unit in module.parameters())


def collected(data, probe=COLLECTED, classes=3):
    torch.manual_seed(1)
    return collect_signature(Points(classes), DataLoader(data, batch_size=16), probe=probe, encoder="encoder")


def test_a_signature_is_the_mean_over_batches_and_the_same_each_time():
    data = points()
    signature, again = collected(data), collected(data)
    for name, stack in signature.units.items():
        assert len(stack) == 2
        assert (stack >= 0).all()
        assert torch.equal(stack, again.units[name])
    assert signature.units["encoder.0.weight"].any(2).all()
    unpaired = collected(data, replace(COLLECTED, paired=False))
    assert unpaired.starts == {}
    assert unpaired.units["encoder.4.weight"].shape == (1, 10, 10)
    scale = unpaired.units["encoder.4.weight"].mean() / signature.units["encoder.4.weight"].mean()
    assert 0.2 < scale < 5


def test_it_compares_with_no_signature_of_gradients():
    data = points()
    fisher, gradient = collected(data), collected(data, replace(COLLECTED, statistic="gradient"))
    assert fisher.starts == gradient.starts
    for one, other in ((fisher, gradient), (gradient, fisher)):
        with pytest.raises(IncomparableError, match=r"`statistic` is (fisher|gradient) on one side"):
            one.check_comparable(other)


def test_the_embedding_moves_when_labels_are_shuffled():
    data, probe = points(256), replace(COLLECTED, steps=150, budgets=(128,))
    inputs, labels = data.tensors
    shuffled = labels[torch.randperm(256, generator=torch.Generator().manual_seed(0))]
    halves = [collected(TensorDataset(inputs[part], labels[part]), probe) for part in (slice(0, 128), slice(128, 256))]
    control = collected(TensorDataset(inputs[128:], shuffled[128:]), probe)
    near, far = (
        task2vec_distance(halves[0].units, side.units, asymmetric=False).item() for side in (halves[1], control)
    )
    assert 0 < 2 * near < far


@pytest.mark.parametrize("name", ["loader with a generator", "augmenting data module", "augmenting data set", "stream"])
def test_training_is_bit_identical_with_a_probe_of_the_fisher_information_and_a_summary(name, tmp_path):
    case = CASES[name]
    probes = [TINY, replace(TINY, name="fisher", statistic="fisher")]
    options = {**case.options, "probe": probes, "summary": 20}
    expected, _ = run(case, tmp_path / "without")
    found, made = run(case, tmp_path / "with", lambda: callback(tmp_path / "library", **options))
    assert differing(expected, found) == []
    assert [signature.probe.statistic for signature in made[0].signatures] == ["gradient", "fisher"]
    source = Library(tmp_path / "library").open("mnist")
    stored = source.load_signature(source.find(probes[1].recipe, 16))
    assert torch.equal(stored.units["encoder.0.weight"], made[0].signatures[1].units["encoder.0.weight"])
    assert (stored.units["encoder.0.weight"] >= 0).all()


def test_the_shipped_probe_keeps_the_fisher_information():
    probe = PROBES["task2vec"]
    assert (probe.statistic, probe.paired, probe.budgets) == ("fisher", True, (200, 1000, 5000))
    assert probe.batch_size <= 16
    assert "statistic" not in PROBES["default"].recipe
