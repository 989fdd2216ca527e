"""Collecting: the formulas, pairing from end to end, repeatability, and no trace."""

import copy
import dataclasses
import random

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from helpers import TINY, Points, cross_entropy, points
from pge_lightning.collect import Collector, collect_signature, runs
from pge_lightning.collect.starts import Starts
from pge_lightning.encoder import encoder_units
from pge_lightning.errors import IncomparableError, PGEError
from pge_lightning.isolation import derive_seed, isolated_randomness, seed_all
from pge_lightning.isolation.clone import isolated_copy
from pge_lightning.probe import PROBES, Probe
from pge_lightning.restart import make_initialiser, restart
from pge_lightning.samples.pool import draw

SGD = dataclasses.replace(TINY, optimizer="sgd", lr=0.1)
UNPAIRED = dataclasses.replace(SGD, paired=False)


def loader(samples=100, classes=3, seed=0, **options):
    return DataLoader(points(samples, classes, seed), batch_size=10, shuffle=True, **options)


def same(one, two):
    return one.units.keys() == two.units.keys() and all(
        torch.equal(one.units[name], two.units[name]) for name in one.units
    )


# The formulas


def slow(module, data, probe, budget, fingerprint):
    """An obvious loop: restart, step with `backward`, and keep what the definition asks for."""
    module.to(torch.float32)
    units, initialise = encoder_units(module), make_initialiser(module)
    inputs, labels = data.tensors
    results = []
    for k in range(probe.restarts):
        clone = copy.deepcopy(module)
        head_seed = derive_seed(probe.seed, "head", k, fingerprint)
        seed = derive_seed(probe.seed, "encoder", k) if probe.paired else derive_seed(head_seed, "encoder")
        with isolated_randomness():
            restart(clone, units, initialise, seed, head_seed)
            start = {name: clone.get_parameter(name).detach().clone() for name in units}
            seed_all(derive_seed(probe.seed, "noise", k))
            sums = {name: torch.zeros_like(start[name]) for name in units}
            adam = torch.optim.Adam(clone.parameters(), lr=probe.lr, fused=True)
            for chosen in draw(len(data), budget, probe, k):
                clone.zero_grad()
                cross_entropy(clone, (inputs[chosen], labels[chosen])).backward()
                for name in units:
                    sums[name] += clone.get_parameter(name).grad
                if probe.optimizer == "adam":
                    adam.step()
                    continue
                with torch.no_grad():
                    for unit in clone.parameters():
                        unit -= probe.lr * unit.grad
        end = {name: clone.get_parameter(name).detach() for name in units}
        moved = {name: (start[name] - end[name]) / (probe.steps * probe.lr) for name in units}
        results.append({name: sums[name] / probe.steps for name in units} if probe.optimizer == "sgd" else moved)
    return {name: torch.stack([result[name] for result in results]) for name in units}


@pytest.mark.parametrize("probe", [SGD, TINY, dataclasses.replace(SGD, steps=1), UNPAIRED])
@pytest.mark.parametrize("budget", [32, 64])
def test_signature_agrees_with_a_slow_loop(probe, budget):
    module, data = Points(), points()
    signature = collect_signature(module, DataLoader(data, 10, shuffle=True), probe=probe, budget=budget)
    expected = slow(module, data, probe, budget, signature.data)
    assert list(signature.units) == list(expected)
    for name, value in expected.items():
        value = value if probe.paired else value.mean(0, keepdim=True)
        torch.testing.assert_close(signature.units[name], value, rtol=0, atol=1e-6)
        assert signature.units[name].abs().max() > 1e-4 or name == "encoder.0.bias"
    assert (signature.budget, signature.restarts, signature.samples) == (budget, 3, 100)
    assert signature.probe == probe
    assert signature.seconds > 0


def test_published_takes_one_restart_per_batch_and_keeps_the_mean():
    module, data = Points(), points(200)
    probe = dataclasses.replace(PROBES["published"], batch_size=16)
    signature = collect_signature(module, DataLoader(data, 10), probe=probe)
    one_per_batch = dataclasses.replace(probe, restarts=12)
    order = [batch for k in range(12) for batch in draw(200, 200, probe, k)]
    units, initialise, gradients = encoder_units(module), make_initialiser(module), []
    for k, chosen in enumerate(order):
        clone = isolated_copy(module)
        head_seed = derive_seed(0, "head", k, signature.data)
        with isolated_randomness():
            restart(clone, units, initialise, derive_seed(head_seed, "encoder"), head_seed)
            seed_all(derive_seed(0, "noise", k))
            cross_entropy(clone, tuple(tensor[chosen] for tensor in data.tensors)).backward()
        gradients.append({name: clone.get_parameter(name).grad for name in units})
    assert signature.restarts == one_per_batch.restarts
    assert signature.starts == {}
    for name, value in signature.units.items():
        expected = torch.stack([gradient[name] for gradient in gradients]).mean(0, keepdim=True)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    assert len({index for batch in order for index in batch}) == 192


class Shallow(nn.Module):
    """No batch norm and no dropout: gradients of restarts are plain and cheap."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, inputs):
        return self.head(self.encoder(inputs).tanh())


def mean_gradient(restarts, seed=0, shuffled=False):
    inputs, labels = points(64).tensors
    labels = labels[torch.randperm(64, generator=torch.Generator().manual_seed(9))] if shuffled else labels
    fields = {"steps": 1, "optimizer": "sgd", "lr": 1.0, "batch_size": 64, "budgets": (64,), "paired": False}
    probe = Probe(name="plain", restarts=restarts, seed=seed, **fields)
    data = DataLoader(TensorDataset(inputs, labels), 64)
    return collect_signature(Shallow(), data, loss_fn=cross_entropy, probe=probe).units["encoder.weight"]


def test_norm_of_the_mean_falls_with_the_number_of_independent_restarts():
    """Method, section 3, fact 2: sixteen times the restarts, a quarter of the norm."""
    few, many = (np.mean([mean_gradient(restarts, seed).norm().item() for seed in range(4)]) for restarts in (4, 64))
    assert few / many == pytest.approx(4.0, rel=0.35)


def test_without_warm_up_the_mean_forgets_the_labels():
    """Method, section 3, fact 3: what labels contribute is linear in the head, and averages out."""
    apart = [(mean_gradient(n) - mean_gradient(n, shuffled=True)).norm().item() for n in (8, 256)]
    assert apart[1] < apart[0] / 3


# Pairing


@pytest.mark.parametrize("probe", [TINY, SGD])
def test_data_sets_start_from_one_encoder_whatever_their_classes(probe):
    expected = collect_signature(Points(2), loader(classes=2), probe=probe)
    for classes in (2, 10, 47):
        for head_first in (False, True):
            module = Points(classes, head_first)
            signature = collect_signature(module, loader(classes=classes, seed=classes), probe=probe)
            assert signature.starts == expected.starts
            signature.check_comparable(expected)
            assert not same(signature, expected)
    assert {len(set(hashes)) for hashes in expected.starts.values()} == {1, 3}
    assert len(set(expected.starts["encoder.0.weight"])) == 3


def heads(module, data):
    started = []
    collector = Collector(module, data, probe=TINY, prepare=lambda clone: started.append(clone.head.weight.clone()))
    collector.collect(32)
    return torch.stack([weight.detach() for weight in started])


def test_heads_start_from_the_data():
    one, again, other = heads(Points(), loader()), heads(Points(), loader()), heads(Points(), loader(seed=1))
    assert torch.equal(one, again)
    assert all(not torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert len({weight.sum().item() for weight in one}) == 3


def test_a_frozen_part_of_the_encoder_keeps_its_values():
    def collected(bias, thaw=False):
        module, kept = Points(), []
        nn.init.constant_(module.encoder[0].bias, bias)
        nn.init.eye_(module.encoder[0].weight)
        module.encoder[0].requires_grad_(False)
        prepare = lambda clone: kept.append(clone.encoder[0].weight.clone())  # ruff: ignore[lambda-assignment]
        signature = Collector(module, loader(), probe=TINY, prepare=prepare, thaw=thaw).collect(32)
        return signature, all(torch.equal(value, module.encoder[0].weight) for value in kept)

    (one, kept), (two, _), (other, _) = collected(1.0), collected(1.0), collected(2.0)
    assert kept
    assert list(one.frozen) == ["encoder.0.weight", "encoder.0.bias"]
    assert not one.frozen.keys() & one.units.keys()
    one.check_comparable(two)
    with pytest.raises(IncomparableError, match=r"those of 'encoder\.0\.bias' differ"):
        one.check_comparable(other)
    (thawed, kept), (whole, _) = (
        collected(1.0, thaw=True),
        (collect_signature(Points(), loader(), probe=TINY, budget=32), 0),
    )
    assert not kept
    assert thawed.frozen == {}
    thawed.check_comparable(whole)
    assert same(thawed, whole)
    with pytest.raises(IncomparableError, match=r"'encoder\.0\.bias' \(2 in all\) is frozen on one side only"):
        whole.check_comparable(one)


def test_a_teacher_follows_its_student_and_is_not_noted_as_frozen():
    class Distilled(Points):
        def __init__(self):
            super().__init__()
            self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)

    started = []
    prepare = lambda clone: started.append((clone.encoder[0].weight - clone.teacher[0].weight).abs().max())  # ruff: ignore[lambda-assignment]
    signature = Collector(Distilled(), loader(), probe=TINY, encoder="encoder", prepare=prepare).collect(32)
    assert started == [0, 0, 0]
    assert not {"teacher.0.weight", "teacher.4.weight"} & signature.frozen.keys()
    signature.check_comparable(collect_signature(Distilled(), loader(), probe=TINY, encoder="encoder", budget=32))


def test_a_changed_start_is_refused_by_name():
    def build(gain):
        module = Points()
        nn.init.xavier_normal_(module.encoder[4].weight, gain)
        return module

    one, two = (collect_signature(Points(), loader(), probe=TINY, factory=lambda g=g: build(g)) for g in (1.0, 1.1))
    with pytest.raises(IncomparableError, match=r"unit 'encoder\.4\.weight' started from other values"):
        one.check_comparable(two)


def test_an_encoder_that_is_set_instead_of_drawn_is_found_out():
    class Set(nn.Linear):
        def reset_parameters(self):
            nn.init.eye_(self.weight)
            nn.init.zeros_(self.bias)

    module = nn.ModuleDict({"encoder": Set(6, 6), "head": nn.Linear(6, 3)})
    loss_fn = lambda clone, batch: cross_entropy(nn.Sequential(clone.encoder, clone.head), batch)  # ruff: ignore[lambda-assignment]
    with pytest.raises(
        PGEError, match=r"restarts to differ, but .* is set, not drawn\. Give a `factory` that draws it"
    ):
        collect_signature(module, loader(), loss_fn=loss_fn, probe=TINY)
    factory = lambda: nn.ModuleDict({"encoder": nn.Linear(6, 6), "head": nn.Linear(6, 3)})  # ruff: ignore[lambda-assignment]
    assert collect_signature(module, loader(), loss_fn=loss_fn, probe=TINY, factory=factory).restarts == 3


def test_a_start_that_cannot_be_made_again_is_found_out():
    count = iter(range(100))

    def factory():
        module = Points()
        nn.init.constant_(module.encoder[4].bias, next(count))
        return module

    with pytest.raises(PGEError, match=r"In restart 0: .* made again from its seed, but 'encoder\.4\.bias' came out"):
        collect_signature(Points(), loader(), probe=TINY, factory=factory)


def test_signatures_of_small_and_of_large_modules_are_made_alike(monkeypatch):
    """Rows of small modules are filled before the warm-up; starts of larger ones are made a second time."""
    made = []
    monkeypatch.setattr(Starts, "make", lambda self, *key, make=Starts.make: made.append(key[0]) or make(self, *key))
    small = collect_signature(Points(), loader(), probe=TINY)
    few = [made.count(k) for k in range(3)]
    monkeypatch.setattr(runs, "_SMALL", 0)
    made.clear()
    large = collect_signature(Points(), loader(), probe=TINY)
    assert same(small, large)
    assert small.starts == large.starts
    assert few == [2, 1, 1]
    assert [made.count(k) for k in range(3)] == [2, 2, 2]


# Same inputs, same signature


def test_two_runs_agree_bit_for_bit_whatever_happened_before():
    module = Points()
    torch.manual_seed(1)
    one = collect_signature(module, loader(), probe=TINY)
    with torch.no_grad():
        module.encoder[0].weight.fill_(3.0)
    seed_all(2)
    torch.rand(5), np.random.rand(5), random.random()
    two = collect_signature(module, loader(), probe=TINY)
    assert same(one, two)
    assert (one.starts, one.data) == (two.starts, two.data)


class Augmented(TensorDataset):
    def __getitem__(self, index):
        inputs, label = super().__getitem__(index)
        return inputs + 0.1 * torch.randn(6) + 0.1 * random.random(), label


def test_workers_do_not_matter():
    signatures = []
    for options in ({}, {"num_workers": 1}, {"num_workers": 2, "persistent_workers": True}):
        data = DataLoader(Augmented(*points().tensors), 10, shuffle=True, **options)
        torch.manual_seed(0)
        first = list(data) if "persistent_workers" in options else None
        signatures.append(collect_signature(Points(), data, probe=TINY))
        assert first is None or data._iterator is not None
    assert same(signatures[0], signatures[1])
    assert same(signatures[0], signatures[2])


def test_a_noisy_data_set_draws_afresh_in_every_restart():
    data = DataLoader(Augmented(*points().tensors), 10)
    plain = collect_signature(Points(), loader(), probe=TINY)
    assert not same(collect_signature(Points(), data, probe=TINY), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_collect_in_float32(dtype):
    signature = collect_signature(Points().to(dtype), loader(), probe=TINY)
    assert {stack.dtype for stack in signature.units.values()} == {torch.float32}
    assert same(signature, collect_signature(Points(), loader(), probe=TINY))
    inputs, labels = points().tensors
    halves = DataLoader(TensorDataset(inputs.to(dtype), labels), 10, shuffle=True)
    other = collect_signature(Points().to(dtype), halves, probe=TINY)
    torch.testing.assert_close(
        other.units["encoder.4.bias"].mean(), signature.units["encoder.4.bias"].mean(), rtol=0, atol=0.1
    )


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", [lambda data: data, list])
def test_callers_without_gradients_get_the_same(mode, kind):
    expected = collect_signature(Points(), kind(loader(generator=torch.Generator().manual_seed(0))), probe=TINY)
    with mode():
        data = kind(loader(generator=torch.Generator().manual_seed(0)))
        assert same(collect_signature(Points(), data, probe=TINY), expected)
        assert not torch.is_grad_enabled()


def test_modes_of_training():
    modes = []

    class Spy(Points):
        def training_step(self, batch, batch_idx):
            modes.append([part.training for part in self.encoder])
            return super().training_step(batch, batch_idx)

    collect_signature(Spy().eval(), loader(), probe=TINY)
    module = Spy()
    module.encoder[1].eval()
    collect_signature(module, loader(), probe=TINY)
    assert modes == [[True] * 5] * 12 + [[True, False, True, True, True]] * 12
    assert [part.training for part in module.encoder] == [True, False, True, True, True]


# No trace


class Stop(Exception):
    """Raised by a loss."""


def state(module):
    """Everything of a module and of the global random state that could change."""
    attributes = {key: value for key, value in vars(module).items() if key[:1] != "_"}
    return (
        {name: value.clone() for name, value in module.state_dict().items()},
        {name: None if unit.grad is None else unit.grad.clone() for name, unit in module.named_parameters()},
        [(name, unit.requires_grad, id(unit)) for name, unit in module.named_parameters()],
        [part.training for part in module.modules()],
        [[len(vars(part)[key]) for key in vars(part) if key.endswith("_hooks")] for part in module.modules()],
        copy.deepcopy(attributes),
        torch.get_rng_state(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    )


def assert_unchanged(now, before):
    if isinstance(before, torch.Tensor):
        assert torch.equal(now, before)
    elif isinstance(before, dict):
        assert now.keys() == before.keys()
        for key in before:
            assert_unchanged(now[key], before[key])
    else:
        assert now == before


@pytest.mark.parametrize("error", [None, Stop, KeyboardInterrupt])
@pytest.mark.parametrize("step", [0, 1, 3, 7, 11])
def test_module_and_random_state_are_left_alone(error, step):
    module = Points()
    module.register_buffer("queue", torch.zeros(3), persistent=False)
    module.seen, module.notes = 0, ["kept"]
    module.encoder[4].requires_grad_(False)
    module.encoder[4].register_forward_hook(lambda *_: None)
    cross_entropy(module, points(20).tensors).backward()
    steps = []

    def loss_fn(clone, batch):
        clone.seen += 1
        clone.queue.add_(1)
        clone.notes.append("lost")
        clone.encoder[0].register_forward_hook(lambda *_: None)
        clone.encoder[1].eval()
        clone.encoder[4].requires_grad_(True)
        torch.rand(3), np.random.rand(3), random.random()
        steps.append(clone)
        if error is not None and len(steps) == step + 1:
            raise error
        return cross_entropy(clone, batch)

    data = loader(generator=torch.Generator().manual_seed(3))
    order, before = data.generator.get_state(), state(module)
    if error is None:
        collect_signature(module, data, loss_fn=loss_fn, probe=TINY)
    else:
        with pytest.raises(PGEError if error is Stop else error) as caught:
            collect_signature(module, data, loss_fn=loss_fn, probe=TINY)
        assert error is KeyboardInterrupt or isinstance(caught.value.__cause__.__cause__, Stop)
    assert len(steps) == (12 if error is None else step + 1)
    assert_unchanged(dict(enumerate(state(module))), dict(enumerate(before)))
    assert torch.equal(data.generator.get_state(), order)
    assert torch.is_grad_enabled()


def test_logging_and_hooks_of_a_lightning_module():
    calls = []

    class Hooked(Points):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            calls.append("before")
            return batch

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [-batch[0], batch[1]]

    class Module(pl.LightningDataModule):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            calls.append("after")
            return batch

    module = Hooked()
    collect_signature(module, loader(), probe=TINY)
    assert calls == ["before"] * 12
    flipped = Collector(module, loader(), probe=TINY).collect(32)
    plain = Collector(module, loader(), probe=TINY, datamodule=Module()).collect(32)
    assert calls[12:] == ["before"] * 12 + ["before", "after"] * 12
    assert same(plain, collect_signature(Points(), loader(), probe=TINY, budget=32))
    assert not same(plain, flipped)


# Losses that do not come


def test_steps_without_a_loss_are_skipped():
    def loss_fn(clone, batch):
        return None if batch[1][0] == 0 else cross_entropy(clone, batch)

    signature = collect_signature(Points(), loader(), loss_fn=loss_fn, probe=SGD)
    assert not same(signature, collect_signature(Points(), loader(), probe=SGD))
    with pytest.raises(PGEError, match="In restart 0: Expected a loss from one step at least, but got None for every"):
        collect_signature(Points(), loader(), loss_fn=lambda *_: None, probe=TINY)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_the_restart(bad):
    steps = []

    def loss_fn(clone, batch):
        steps.append(0)
        return cross_entropy(clone, batch) * (bad if len(steps) == 6 else 1)

    with pytest.raises(
        PGEError,
        match=rf"In restart 1: .* but got \[[0-9.]+, {bad}, .*lower the probe's `lr`",
    ):
        collect_signature(Points(), loader(), loss_fn=loss_fn, probe=TINY)


def test_an_update_that_is_not_finite_names_unit_and_restart():
    def loss_fn(clone, batch):
        return (clone.encoder[0].weight * 0).sum().sqrt() + cross_entropy(clone, batch)

    probe = dataclasses.replace(SGD, steps=1)
    with pytest.raises(
        PGEError, match=r"In restart 0: Expected finite updates, but those of unit 'encoder\.0\.weight' are not"
    ):
        collect_signature(Points(), loader(), loss_fn=loss_fn, probe=probe)


def test_a_unit_that_the_loss_does_not_reach_has_no_update():
    class Spare(Points):
        def __init__(self):
            super().__init__()
            self.encoder.append(nn.Linear(2, 2))

        def forward(self, inputs):
            return self.head(self.encoder[:-1](inputs))

    for probe in (TINY, SGD):
        signature = collect_signature(Spare(), loader(), probe=probe)
        assert signature.units["encoder.5.weight"].shape == (3, 2, 2)
        assert signature.units["encoder.5.weight"].abs().sum() == 0
        assert signature.units["encoder.4.weight"].abs().sum() > 0


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (nn.Sequential(nn.Linear(6, 3)), {"encoder": "0"}, "Expected a `loss_fn` for Sequential"),
        (nn.Sequential(nn.Linear(6, 3)), {"loss_fn": cross_entropy}, "Name the transferred part"),
        (Points(), {"encoder": "none"}, "but got none"),
        (Points(), {"factory": lambda: nn.Linear(6, 3)}, "Give a factory of the same module"),
    ],
)
def test_what_is_missing_is_said_before_the_data_are_read(module, options, message):
    def batches():
        raise AssertionError
        yield

    with pytest.raises(PGEError, match=message):
        collect_signature(module, batches(), probe=TINY, **options)


# Budgets


@pytest.mark.parametrize(("samples", "rungs"), [(40, [32]), (64, [32, 64]), (100, [32, 64])])
def test_the_largest_rung_that_is_filled_is_taken(samples, rungs):
    collector = Collector(Points(), loader(samples), probe=TINY)
    assert collector.budgets == rungs
    assert collect_signature(Points(), loader(samples), probe=TINY).budget == rungs[-1]


def test_budgets_that_cannot_be_filled_are_refused():
    with pytest.raises(PGEError, match=r"at least 32 samples for the smallest rung of probe 'tiny', but got 20"):
        collect_signature(Points(), loader(20), probe=TINY)
    for budget in (15, 101):
        with pytest.raises(ValueError, match=f"between a batch of 16 and the 100 samples there are, but got {budget}"):
            collect_signature(Points(), loader(), probe=TINY, budget=budget)
    assert Collector(Points(), loader(), probe=dataclasses.replace(TINY, budgets=())).budgets == [100]


def test_a_part_is_a_data_set_of_its_own():
    collector = Collector(Points(), loader(), probe=TINY)
    half = collector.part(list(range(50)))
    assert (half.budgets, half.data != collector.data) == ([32], True)
    signature = half.collect(32)
    assert signature.samples == 50
    alone = DataLoader(TensorDataset(*(tensor[:50] for tensor in points().tensors)), 10)
    assert same(signature, collect_signature(Points(), alone, probe=TINY))


def test_a_stored_signature_fits_only_its_own_collection():
    collector = Collector(Points(), loader(), probe=TINY)
    signature = collector.collect(32)
    assert collector.fits(signature, 32)
    assert not collector.fits(signature, 64)
    assert not Collector(Points(), loader(seed=1), probe=TINY).fits(signature, 32)
    assert not Collector(Points(), loader(), probe=SGD).fits(signature, 32)
    stale = {**signature.starts, "encoder.0.weight": ("0", "1", "2")}
    assert not collector.fits(dataclasses.replace(signature, starts=stale), 32)


def test_an_unpaired_signature_fits_only_its_own_architecture():
    probe, data = dataclasses.replace(PROBES["published"], batch_size=16), loader()
    collector = Collector(Shallow(), data, probe=probe, loss_fn=cross_entropy)
    signature = collector.collect(100)
    assert collector.fits(signature, 100)
    other = Collector(Points(), data, probe=probe)
    assert other.data == collector.data
    assert not other.fits(signature, 100)


def test_progress_is_shown_on_demand(capsys):
    collect_signature(Points(), loader(), probe=TINY)
    assert capsys.readouterr().out == ""
    signature = collect_signature(Points(), loader(), probe=TINY, progress=True)
    assert same(signature, collect_signature(Points(), loader(), probe=TINY, device="cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_device_nearly_the_same():
    signature = collect_signature(Points(), loader(), probe=SGD, device="cuda")
    expected = collect_signature(Points(), loader(), probe=SGD)
    assert signature.starts == expected.starts
    assert {stack.device.type for stack in signature.units.values()} == {"cpu"}
