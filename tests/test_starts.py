"""Starts: what a restart begins with, for modules of unusual make."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertModel

from helpers import TINY, Points, cross_entropy, points
from pge_lightning.artifact import decode, encode
from pge_lightning.callbacks import PrincipalGradientCallback
from pge_lightning.collect import Collector, collect_signature
from pge_lightning.collect.starts import Starts
from pge_lightning.encoder import encoder_state
from pge_lightning.errors import IncomparableError, PGEError
from pge_lightning.gap import compare
from pge_lightning.load import load_encoder
from test_unwrap import WRAPS
from trainer_helpers import fit


def loader(samples=100, seed=0):
    return DataLoader(points(samples, seed=seed), batch_size=10, shuffle=True)


def same(one, two):
    return one.units.keys() == two.units.keys() and all(
        torch.equal(one.units[name], two.units[name]) for name in one.units
    )


class Plain(nn.Module):
    """A net of given layers, and a head."""

    def __init__(self, head, *layers):
        super().__init__()
        self.encoder, self.head = nn.Sequential(*layers), head

    def forward(self, inputs):
        return self.head(self.encoder(inputs))


@pytest.mark.parametrize("wrap", WRAPS)
def test_wrapped_modules_have_the_signature_of_the_plain_one(wrap):
    module = wrap(Points())
    before = [unit.clone() for unit in module.parameters()]
    signature = collect_signature(module, loader(), probe=TINY, loss_fn=cross_entropy)
    assert same(signature, collect_signature(Points(), loader(), probe=TINY, loss_fn=cross_entropy))
    assert all(map(torch.equal, module.parameters(), before))


# Lazy modules


def lazy():
    layers = nn.LazyLinear(10), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Linear(10, 8)
    return Plain(nn.LazyLinear(3), *layers)


def known():
    return Plain(nn.Linear(8, 3), nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 8))


def test_a_lazy_module_has_the_signature_of_one_that_knows_its_shapes_and_stays_lazy():
    module, data = lazy(), loader()
    collector = Collector(module, data, probe=TINY, loss_fn=cross_entropy)
    signature, expected = (
        collector.collect(32),
        collect_signature(known(), loader(), probe=TINY, loss_fn=cross_entropy, budget=32),
    )
    assert same(signature, expected)
    assert signature.starts == expected.starts
    assert collector.fits(expected, 32)
    assert is_lazy(module.encoder[0].weight)
    assert is_lazy(module.encoder[1].running_mean)
    assert isinstance(module.head, nn.LazyLinear)
    assert load_encoder(module, encoder_state(known())).skipped == {}
    assert module(torch.randn(4, 6)).shape == (4, 3)


def test_what_the_first_step_changes_beside_lazy_parts_is_not_kept():
    class Counting(Plain):
        def __init__(self):
            super().__init__(nn.LazyLinear(3), nn.Linear(6, 8))
            self.norm, self.calls = nn.BatchNorm1d(6), 0

        def forward(self, inputs):
            self.calls += 1
            return super().forward(self.norm(inputs))

    seen = []
    prepare = lambda clone: seen.append((clone.calls, clone.norm.num_batches_tracked.item()))  # ruff: ignore[lambda-assignment]
    module = Counting()
    Collector(module, loader(), probe=TINY, loss_fn=cross_entropy, prepare=prepare).collect(32)
    assert set(seen) == {(0, 0)}
    assert module.calls == 0


def test_lazy_parts_under_two_names_or_none_are_found():
    shared = nn.LazyLinear(6)
    module = Plain(nn.Linear(6, 3), shared, nn.Tanh(), shared)
    signature = collect_signature(module, loader(), probe=TINY, loss_fn=cross_entropy)
    assert {name: stack.shape for name, stack in signature.units.items()} == {
        "encoder.0.weight": (3, 6, 6),
        "encoder.0.bias": (3, 6),
    }
    signature = collect_signature(nn.LazyLinear(3), loader(), probe=TINY, loss_fn=cross_entropy, encoder="")
    assert signature.units["weight"].shape == (3, 3, 6)


def test_a_lazy_part_that_no_step_reaches_is_named():
    module = lazy()
    module.spare = nn.LazyLinear(2)
    with pytest.raises(PGEError, match=r"shapes, but spare\.weight, spare\.bias took no part in it"):
        collect_signature(module, loader(), probe=TINY, loss_fn=cross_entropy)


# Parameters of other kinds


class Spectral(nn.Module):
    """Mixes frequencies with complex weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 4, dtype=torch.complex64))
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.normal_(self.weight)

    def forward(self, inputs):
        return torch.fft.irfft(torch.fft.rfft(inputs) @ self.weight, n=6)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_units_count_as_pairs_of_real_numbers(dtype):
    module = Plain(nn.Linear(6, 3), Spectral())
    module.encoder[0].weight.data = module.encoder[0].weight.data.to(dtype)
    one, two = (collect_signature(module, loader(seed=s), probe=TINY, loss_fn=cross_entropy) for s in (0, 1))
    assert one.units["encoder.0.weight"].shape == (3, 4, 4, 2)
    assert one.units["encoder.0.weight"].dtype == torch.float32
    assert one.units["encoder.0.weight"].abs().sum((0, 1, 2)).all()
    assert compare(one, two).value > 0
    assert module.encoder[0].weight.dtype == dtype


def test_complex_units_are_stored_and_loaded():
    source, target = Plain(nn.Linear(6, 3), Spectral()), Plain(nn.Linear(6, 3), Spectral())
    weights, _ = decode(encode(encoder_state(source), {}, "encoder"), "encoder")
    assert load_encoder(target, weights).loaded == ("encoder.0.weight",)
    assert torch.equal(target.encoder[0].weight, source.encoder[0].weight)


class Listed(nn.Module):
    """Parameters in containers, integers, and a part called twice."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.rows = nn.ParameterList([torch.randn(6, 6), torch.randn(6, 6)])
        self.encoder.named = nn.ParameterDict({"scale": torch.randn(6)})
        self.encoder.order = nn.Parameter(torch.arange(6), requires_grad=False)
        self.encoder.twice = nn.Linear(6, 6)
        self.encoder.again = self.encoder.twice
        self.head = nn.Linear(6, 3)

    def forward(self, inputs):
        hidden = (
            inputs[:, self.encoder.order] @ self.encoder.rows[0] @ self.encoder.rows[1] * self.encoder.named["scale"]
        )
        return self.head(self.encoder.again(self.encoder.twice(hidden).tanh()))


def test_containers_of_parameters_integers_and_shared_parts():
    module = Listed()
    signature = collect_signature(module, loader(), probe=TINY, loss_fn=cross_entropy)
    assert list(signature.units) == [
        "encoder.rows.0",
        "encoder.rows.1",
        "encoder.named.scale",
        "encoder.twice.weight",
        "encoder.twice.bias",
    ]
    assert all(stack.any() for stack in signature.units.values())
    assert list(signature.frozen) == ["encoder.order"]
    signature.check_comparable(collect_signature(Listed(), loader(seed=1), probe=TINY, loss_fn=cross_entropy))


def test_a_tied_unit_may_have_its_first_name_in_the_head():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(6, 6, bias=False)
            self.encoder = nn.Linear(6, 6)
            self.encoder.weight = self.head.weight

        def forward(self, inputs):
            return self.head(self.encoder(inputs).tanh())

    one, two = (collect_signature(Tied(), loader(seed=s), probe=TINY, loss_fn=cross_entropy) for s in (0, 1))
    assert list(one.units) == ["head.weight", "encoder.bias"]
    one.check_comparable(two)


def test_views_that_were_made_once_are_told_apart_from_the_weights():
    class Sliced(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Module()
            self.encoder.flat = nn.Parameter(torch.randn(36))
            self.view = self.encoder.flat.view(6, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, inputs):
            return self.head(inputs @ self.view)

    with pytest.raises(PGEError, match="moved none of its units: the loss does not depend on them"):
        collect_signature(Sliced(), loader(), probe=TINY, loss_fn=cross_entropy)


# Adapters


class Tuned(nn.Module):
    """A BERT of a few hundred weights with low-rank adapters, and a head."""

    def __init__(self, base=0, classes=2):
        super().__init__()
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        torch.manual_seed(base)
        bert = BertModel(BertConfig(**sizes, vocab_size=20))
        self.model = get_peft_model(bert, LoraConfig(r=2, target_modules=["query", "value"]))
        self.head = nn.Linear(8, classes)

    def forward(self, tokens):
        return self.head(self.model(tokens).last_hidden_state[:, 0])


def tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(20, (60, 5), generator=generator)
    return DataLoader(TensorDataset(inputs, inputs.sum(1) % 2), batch_size=10)


@pytest.mark.parametrize("encoder", [None, "model", "*lora_*"])
def test_the_units_of_a_model_with_adapters_are_the_adapters(encoder):
    def collected(module, seed):
        return collect_signature(module, tokens(seed), probe=TINY, loss_fn=cross_entropy, encoder=encoder, budget=32)

    one, two = collected(Tuned(), 0), collected(Tuned(classes=3), 1)
    assert len(one.units) == 4
    assert all("lora_" in name for name in one.units)
    assert not any("lora_" in name for name in one.frozen)
    assert "model.base_model.model.embeddings.word_embeddings.weight" in one.frozen
    one.check_comparable(two)
    assert compare(one, two).value > 0
    first = next(iter(one.starts.values()))
    assert len(set(first)) == 3  # lora_A is drawn
    assert {len(set(hashes)) for name, hashes in one.starts.items() if "lora_B" in name} == {1}
    with pytest.raises(IncomparableError, match=r"those of 'model\..*word_embeddings\.weight' differ\. Start both"):
        one.check_comparable(collected(Tuned(base=1), 0))


class Training(Tuned, pl.LightningModule):
    def training_step(self, batch, batch_idx):
        return cross_entropy(self, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_source_holds_the_adapters_and_not_what_they_adapt(tmp_path):
    callback = PrincipalGradientCallback(tmp_path, "lora", probe=TINY, encoder="model")
    module = Training()
    fit(module, tokens(0), callbacks=[callback])
    weights = callback.source.load_weights()
    units = callback.signatures[0].units
    assert {name for name in weights if "lora_" in name} == units.keys()
    assert not weights.keys() & callback.signatures[0].frozen.keys()
    assert sum(value.numel() for value in weights.values()) < 100
    target = Training()
    report = load_encoder(target, weights)
    assert set(report.loaded) == set(weights)
    assert all(torch.equal(target.get_parameter(name), module.get_parameter(name)) for name in units)
    assert any(value.any() for name, value in weights.items() if "lora_B" in name)


def test_thawed_units_are_thawed_on_copies_only():
    module = Points()
    module.encoder.requires_grad_(False)
    starts = Starts(module, TINY, thaw=True)
    starts.check()
    assert all(unit.requires_grad for unit in starts.make(0, "data").parameters())
    assert not any(unit.requires_grad for unit in module.encoder.parameters())
    other = Starts(copy.deepcopy(module).requires_grad_(True), TINY)
    other.check()
    assert starts.hashes(starts.make(1, "data")) == other.hashes(other.make(1, "data"))
    with pytest.raises(PGEError, match="6 frozen ones"):
        Starts(module, TINY)
