"""Label-free probes: signatures from inputs alone, beside labelled ones, in whatever way they are collected."""

import copy
import dataclasses
import os

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertModel

from helpers import TINY, Points, points
from pge_lightning.artifact import decode_signature, encode_signature
from pge_lightning.collect import Collector, collect_signature
from pge_lightning.collect.pretext import HEAD, Pretext, projected_input, reduced_input, word_profile
from pge_lightning.data import SklearnDigits
from pge_lightning.encoder import encoder_units
from pge_lightning.errors import IncomparableError, PGEError
from pge_lightning.gap import compare
from pge_lightning.isolation import derive_seed, isolated_randomness, seed_all
from pge_lightning.library import Library
from pge_lightning.restart import make_initialiser, restart
from pge_lightning.samples.pool import draw
from pge_lightning.select import SourceSelector
from trainer_helpers import AugmentingData, Net, callback, fit, make_loader
from two_processes import in_two_processes

FREE = dataclasses.replace(TINY, name="free", pretext="auto")


def inputs(seed=0, samples=100):
    return [points(samples, seed=seed).tensors[0]]


def same(one, two):
    return one.units.keys() == two.units.keys() and all(
        torch.equal(one.units[name], two.units[name]) for name in one.units
    )


# What is told of inputs


def test_a_reduced_image_holds_means_of_its_fields():
    images = torch.rand(3, 2, 14, 21)
    slow = torch.stack([
        images[:, :, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean((2, 3)) for i in range(7) for j in range(7)
    ])
    torch.testing.assert_close(reduced_input(images), slow.permute(1, 2, 0).flatten(1))


@pytest.mark.parametrize(
    ("shape", "width"),
    [((5, 1, 32), 16), ((5, 2, 9), 32), ((5, 1, 8, 8, 8), 64), ((5, 10), 10), ((5, 100), 64), ((5,), 1)],
)
def test_reduced_inputs_have_one_size_whatever_they_were(shape, width):
    assert reduced_input(torch.rand(shape)).shape == (5, width)


def test_complex_inputs_give_both_their_parts():
    series = torch.randn(5, 2, 32, dtype=torch.complex64)
    parts = reduced_input(torch.cat([series.real, series.imag], 1))
    torch.testing.assert_close(projected_input(series), projected_input(torch.stack([series.real, series.imag], 1)))
    torch.testing.assert_close(reduced_input(series).shape, torch.Size([5, 2 * 49]))
    assert parts.shape == (5, 64)


def test_a_projection_is_fixed_and_linear():
    one, other = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(projected_input(one + 2 * other), projected_input(one) + 2 * projected_input(other))
    assert torch.equal(projected_input(one), projected_input(one.clone()))


def test_words_are_told_without_padding_and_in_any_order():
    texts = torch.tensor([[5, 9, 5, 0], [0, 9, 5, 5], [517, 9, 5, 0], [5, 9, 0, 0], [0, 0, 0, 0]])
    told = word_profile(texts)
    assert torch.equal(told[0], told[1])
    assert torch.equal(told[0], told[2])  # 512 apart share a place
    assert not torch.equal(told[0], told[3])
    torch.testing.assert_close(told[0, 5], 2 * told[0, 9])
    torch.testing.assert_close(told.square().mean(1), torch.tensor([1.0, 1, 1, 1, 0]))
    assert told[:, 0].tolist() == [0] * 5


def test_what_cannot_be_told_is_refused():
    with pytest.raises(
        PGEError, match=r"2 to 5 dimensions for a pretext, but got \[1, 1, 1, 1, 1, 1\]. Give a `loss_fn`"
    ):
        reduced_input(torch.zeros([1] * 6))
    with pytest.raises(PGEError, match=r"token numbers for words, integers .*, but got torch.float32 of shape"):
        word_profile(torch.zeros(2, 3))


def width_of_head(kind, batch):
    """Entries that the head is asked for."""
    pretext = Pretext(kind, "", lambda module, batch: torch.zeros(5, 2))
    copied = nn.Linear(1, 1)
    assert pretext.step(copied)(batch, 0) is None
    pretext.add_head(copied, 0)
    return copied.get_submodule(HEAD).out_features


def test_auto_goes_by_the_type_of_the_inputs():
    tokens = torch.ones(5, 3, dtype=torch.int64)
    assert width_of_head("auto", tokens) == 512
    assert width_of_head("auto", {"input_ids": tokens, "attention_mask": tokens}) == 512
    assert width_of_head("auto", (torch.rand(5, 1, 8, 8), tokens)) == 49
    assert width_of_head("auto", (torch.zeros(5, 1, 8, 8, dtype=torch.uint8), tokens)) == 49
    assert width_of_head("auto", {"ids": tokens, "pixels": torch.rand(5, 1, 20)}) == 16
    assert width_of_head("projection", torch.rand(5, 1, 8, 8)) == 64
    with pytest.raises(PGEError, match=r"inputs with a tensor for a pretext, but got a str. Give a `loss_fn`"):
        width_of_head("auto", "text")


# Signatures


def slow(module, x, probe, budget, fingerprint):
    """An obvious loop over inputs alone."""
    units, initialise, results = encoder_units(module), make_initialiser(module), []
    for k in range(probe.restarts):
        clone = copy.deepcopy(module)
        head_seed = derive_seed(probe.seed, "head", k, fingerprint)
        with isolated_randomness():
            restart(clone, units, initialise, derive_seed(probe.seed, "encoder", k), head_seed)
            start = {name: clone.get_parameter(name).detach().clone() for name in units}
            generator = torch.Generator().manual_seed(derive_seed(head_seed, HEAD))
            weight = (torch.rand(6, 10, generator=generator) * 2 - 1) / 10**0.5
            bias = (torch.rand(6, generator=generator) * 2 - 1) / 10**0.5
            seed_all(derive_seed(probe.seed, "noise", k))
            trained = [*clone.encoder.parameters(), weight.requires_grad_(), bias.requires_grad_()]
            adam = torch.optim.Adam(trained, lr=probe.lr)
            for chosen in draw(len(x), budget, probe, k):
                loss = (clone.encoder(x[chosen]) @ weight.T + bias - x[chosen]).square().mean()
                adam.zero_grad()
                loss.backward()
                adam.step()
        steps = probe.steps * probe.lr
        results.append({name: (start[name] - clone.get_parameter(name).detach()) / steps for name in units})
    return {name: torch.stack([result[name] for result in results]) for name in units}


def test_a_signature_agrees_with_a_slow_loop():
    module, x = Points(), inputs()
    signature = collect_signature(module, x, probe=FREE, budget=64)
    for name, expected in slow(module, x[0], FREE, 64, signature.data).items():
        if name != "encoder.0.bias":  # which batch norm takes back, so that Adam follows rounding errors
            torch.testing.assert_close(signature.units[name], expected, rtol=0, atol=1e-4)
            assert expected.abs().max() > 1e-2


def test_labels_change_nothing():
    data = points()
    shuffled = TensorDataset(data.tensors[0], data.tensors[1].flip(0))
    alone = collect_signature(Points(), inputs(), probe=FREE)
    assert same(alone, collect_signature(Points(), DataLoader(data, 10), probe=FREE))
    assert same(alone, collect_signature(Points(), DataLoader(shuffled, 10), probe=FREE))
    assert same(alone, collect_signature(Points(num_classes=7), DataLoader(data, 10, shuffle=True), probe=FREE))


def test_data_sets_start_alike_and_heads_apart():
    one, two = (collect_signature(Points(), inputs(seed), probe=FREE) for seed in (0, 1))
    assert one.starts == two.starts
    assert one.data != two.data
    one.check_comparable(two)
    assert 0 < compare(one, two).value < 2
    collector = Collector(Points(), inputs(), probe=FREE)
    heads = [collector.starts.make(0, data).get_submodule(HEAD).weight for data in ("one", "one", "two")]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_nearer_inputs_are_nearer():
    """Points around one corner of a space, against those around another."""

    def of(seed, basis):
        corner = torch.randn(6, generator=torch.Generator().manual_seed(basis))
        around = torch.randn(200, 6, generator=torch.Generator().manual_seed(10 + seed))
        return collect_signature(Points(), [2 * corner + 0.5 * around], probe=probe)

    probe = dataclasses.replace(FREE, restarts=6, steps=20)
    target, near, far = of(0, 0), of(1, 0), of(2, 1)
    # By all units: in a network of two small layers the one that is left of its kernels says little.
    assert compare(near, target, "layerwise").value < compare(far, target, "layerwise").value - 0.05


def test_labelled_and_label_free_signatures_do_not_compare():
    free, labelled = (collect_signature(Points(), DataLoader(points(), 10), probe=probe) for probe in (FREE, TINY))
    with pytest.raises(IncomparableError, match="`pretext` is auto on one side and None on the other"):
        free.check_comparable(labelled)
    with pytest.raises(IncomparableError, match="`pretext`"):
        labelled.check_comparable(free)


def test_artifacts_keep_the_pretext():
    signature = collect_signature(Points(), inputs(), probe=FREE)
    again = decode_signature(encode_signature(signature))
    assert again.probe == FREE
    assert same(signature, again)


def test_the_same_data_give_the_same_signature_and_leave_no_trace():
    module, x = Points(), inputs()
    state, random = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    one, two = (collect_signature(module, x, probe=FREE) for _ in range(2))
    assert same(one, two)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert list(module._modules) == ["encoder", "head"]


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(5))
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.encoder(x))


@pytest.mark.parametrize("probe", [FREE, dataclasses.replace(FREE, pretext="projection", optimizer="sgd", lr=0.1)])
def test_lazy_modules_get_their_shapes_from_inputs_alone(probe):
    signature = collect_signature(Lazy(), inputs(), probe=probe)
    assert {name: list(stack.shape) for name, stack in signature.units.items()} == {
        "encoder.0.weight": [3, 8, 6],
        "encoder.0.bias": [3, 8],
        "encoder.2.weight": [3, 5, 8],
        "encoder.2.bias": [3, 5],
    }


def test_language_models_are_asked_for_words_and_padding_counts_nowhere():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=32, **sizes), add_pooling_layer=False)
    tokens = torch.randint(1, 32, (64, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[::2, 3:] = 0
    batch = {"input_ids": tokens, "attention_mask": mask}
    signature = collect_signature(model, [batch], probe=FREE, budget=32)
    assert signature.units.keys() == dict(model.named_parameters()).keys()
    pretext, garbage = Pretext("auto", ""), torch.where(mask == 0, 31, tokens)
    step = pretext.step(model.eval())
    assert step(batch, 0) is None
    pretext.add_head(model, 0)
    loss = step(batch, 0)
    assert loss > 0
    torch.testing.assert_close(step({**batch, "input_ids": garbage}, 0), loss)
    assert not torch.isclose(step({**batch, "input_ids": tokens.flip(0)}, 0), loss, rtol=1e-6)


def test_features_of_ones_own_are_followed():
    def features(module, batch):
        return module.encoder(2 * batch)

    mine = collect_signature(Points(), inputs(), probe=FREE, features=features)
    assert not same(mine, collect_signature(Points(), inputs(), probe=FREE))
    with pytest.raises(PGEError, match=r"return a tensor \[16, d\] for 16 samples, but got \[10\]"):
        collect_signature(Points(), inputs(), probe=FREE, features=lambda module, batch: module.encoder(batch)[0])


def test_features_without_a_gradient_are_refused():
    def features(module, batch):
        return module.encoder(batch).detach()

    with pytest.raises(PGEError, match=r"Expected the warm-up to move the encoder"):
        collect_signature(Points(), inputs(), probe=FREE, features=features)


class Stuck(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Bilinear(6, 6, 3)


def test_an_encoder_that_wants_more_than_inputs_is_told_before_any_work():
    with pytest.raises(PGEError, match=r"TypeError: .*Give `features=`, a function of \(module, batch\)"):
        Collector(Stuck(), inputs(), probe=FREE)


# Beside labels


def test_the_callback_collects_both_ladders(tmp_path):
    ours = callback(tmp_path, probe=[TINY, FREE])
    fit(Net(), make_loader(), [ours])
    source = Library(tmp_path).open("mnist")
    held = [(entry.probe, entry.budget) for entry in source.signatures]
    assert sorted(held) == [("free", 32), ("free", 64), ("tiny", 32), ("tiny", 64)]
    stored = source.load_signature(source.find(FREE.recipe, FREE.budgets[0]))
    assert stored.probe.pretext == "auto"


def test_a_target_without_labels_is_ranked(tmp_path):
    for seed, name in enumerate(["near", "far"]):
        fit(Net(), make_loader(5 * seed), [callback(tmp_path, name=name, probe=[TINY, FREE])])
    target = [make_loader().dataset.tensors[0]]
    ranking = SourceSelector(str(tmp_path), probe=FREE, verbose=False, cache=False).rank(Net(), target)
    assert ranking.best.name == "near"  # the same inputs
    frame = ranking.to_pandas()
    assert (frame.status == "ok").all()


def test_transfer_hooks_of_a_data_module_take_part(tmp_path):
    ours = callback(tmp_path, probe=FREE)
    fit(Net(), AugmentingData(), [ours])
    plain = collect_signature(Net(), make_loader(), probe=FREE, budget=ours.signatures[0].budget)
    assert plain.data == ours.signatures[0].data
    assert not same(plain, ours.signatures[0])


def test_data_modules_offer_what_has_no_label():
    few = SklearnDigits(labels=40, val_fraction=0.5, batch_size=32)
    few.setup()
    loader = few.unlabelled_dataloader()
    (batch,) = next(iter(loader))
    assert batch.shape == (32, 1, 28, 28)
    assert len(loader.dataset) == 1297 - len(few.val_dataloader().dataset) == 649
    held = {tuple(x.flatten().tolist()) for x in few.val_dataloader().dataset.tensors[0]}
    offered = {tuple(x.flatten().tolist()) for x in loader.dataset.tensors[0]}
    drawn = {tuple(x.flatten().tolist()) for x in few.train_dataloader().dataset.tensors[0]}
    assert drawn < offered
    assert not held & offered


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 4))


def test_label_free_probes_take_unlabelled_samples_where_there_are_some():
    few, all_of_it = SklearnDigits(labels=40, val_fraction=0.5), SklearnDigits(val_fraction=0.5)
    few.setup()
    all_of_it.setup()
    options = {"probe": dataclasses.replace(FREE, restarts=2, budgets=(32, 512))}
    collector = Collector(Pixels(), few.train_dataloader(), datamodule=few, limit=1, **options)
    assert collector.budgets == [32, 512]
    one = collector.collect(512)
    two = Collector(Pixels(), all_of_it.train_dataloader(), **options).collect(512)
    assert same(one, two)


def collected_together(rank):
    return collect_signature(Points(), DataLoader(points(), 10), probe=FREE, distributed=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_two_processes_collect_the_signature_of_one(tmp_path):
    alone = collect_signature(Points(), DataLoader(points(), 10), probe=FREE)
    for signature in in_two_processes(collected_together, tmp_path):
        assert same(signature, alone)
