"""Re-initialisation: paired whatever the head is, complete, and true to the module's own initialisation."""

import itertools
import weakref

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model

from helpers import Parts
from pge_lightning.errors import PGEError
from pge_lightning.isolation.clone import isolated_copy
from pge_lightning.restart import hash_start, make_initialiser, restart
from restarts import assert_same


class Swept(nn.Module):
    """A plain module of parts that reset themselves."""

    def __init__(self, num_classes, head_first=False):
        super().__init__()
        if head_first:
            self.head = nn.Linear(10, num_classes)
        self.encoder = Parts()
        if not head_first:
            self.head = nn.Linear(10, num_classes)


class Custom(Swept):
    """An initialisation of its own in the constructor, over everything or made beside the parameter."""

    def __init__(self, num_classes, head_first=False):
        super().__init__(num_classes, head_first)
        self.encoder.position = nn.Parameter(torch.randn(5, 10) * 0.02)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.05)
            if isinstance(part, nn.Conv1d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")
            if isinstance(part, nn.LSTM):
                nn.init.orthogonal_(part.weight_hh_l0)


class Saved(pl.LightningModule):
    """Its hyper-parameters are enough to build it again."""

    def __init__(self, num_classes, head_first=False):
        super().__init__()
        self.save_hyperparameters()
        custom = Custom(num_classes, head_first)
        for name in ("head", "encoder") if head_first else ("encoder", "head"):
            setattr(self, name, getattr(custom, name))


class Bert(pl.LightningModule):
    """A transformers encoder beside a head; nothing is saved, so that `_init_weights` has to do it."""

    def __init__(self, num_classes, head_first=False):
        super().__init__()
        config = BertConfig(
            vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40
        )
        if head_first:
            self.head = nn.Linear(32, num_classes)
        self.encoder = BertModel(config)
        if not head_first:
            self.head = nn.Linear(32, num_classes)


WAYS = {
    "sweep": (Swept, False),
    "factory": (Custom, True),
    "hyperparameters": (Saved, False),
    "transformers": (Bert, False),
}


def started(kind, with_factory, classes, head_first=False, seed=1, head_seed=None):
    """A restarted module with all its initial values."""
    module = kind(classes, head_first)
    initialise = make_initialiser(module, (lambda: kind(classes, head_first)) if with_factory else None)
    shared = [name for name, _ in module.named_parameters() if name.startswith("encoder.")]
    return module, restart(module, shared, initialise, seed, classes if head_seed is None else head_seed)


@pytest.mark.parametrize("way", WAYS)
def test_encoder_starts_do_not_know_the_head(way):
    kind, with_factory = WAYS[way]
    _, expected = started(kind, with_factory, 2)
    for classes, head_first in itertools.product((2, 10, 32, 47), (False, True)):
        torch.manual_seed(classes)
        module, start = started(kind, with_factory, classes, head_first)
        assert hash_start(start) == hash_start(expected)
        assert all(torch.equal(start[name], expected[name]) for name in expected)
        assert all(torch.equal(module.get_parameter(name), value) for name, value in start.items())


@pytest.mark.parametrize("way", WAYS)
def test_encoder_follows_its_seed_and_head_the_other_one(way):
    kind, with_factory = WAYS[way]
    one, start = started(kind, with_factory, 10, head_seed=5)
    two, again = started(kind, with_factory, 10, head_seed=6)
    three, other = started(kind, with_factory, 10, seed=2, head_seed=5)
    assert hash_start(start) == hash_start(again)
    drawn = [name for name, value in start.items() if value.unique().numel() > 2]
    assert len(drawn) >= 8
    assert all(hash_start(start)[name] != hash_start(other)[name] for name in drawn)
    assert not torch.equal(one.head.weight, two.head.weight)
    assert torch.equal(one.head.weight, three.head.weight)


@pytest.mark.parametrize("way", WAYS)
def test_initial_values_have_the_distribution_of_a_fresh_module(way):
    kind, with_factory = WAYS[way]
    draws = [started(kind, with_factory, 10, seed=seed)[1] for seed in range(8)]
    fresh = [dict(kind(10).named_parameters()) for _ in range(8)]
    for name in draws[0]:
        mine, own = (torch.stack([values[name].detach() for values in group]) for group in (draws, fresh))
        if own.std() < 1e-8:
            assert torch.equal(mine, own), name
        elif own.numel() >= 800:
            assert mine.std().item() == pytest.approx(own.std().item(), rel=0.15), name
            assert mine.mean().item() == pytest.approx(own.mean().item(), abs=0.2 * own.std().item()), name


@pytest.mark.parametrize("way", ["sweep", "factory", "hyperparameters"])
def test_special_parts(way):
    kind, with_factory = WAYS[way]
    module = kind(3)
    module.encoder.norm.running_mean.fill_(7.0)
    module.encoder.norm.num_batches_tracked.fill_(9)
    shared = [name for name, _ in module.named_parameters() if name.startswith("encoder.")]
    restart(module, shared, make_initialiser(module, (lambda: kind(3)) if with_factory else None), 0, 0)
    assert module.encoder.embed.weight[0].abs().sum() == 0
    assert module.encoder.norm.running_mean.abs().sum() == 0
    assert module.encoder.norm.running_var.eq(1).all()
    assert module.encoder.norm.num_batches_tracked == 0
    assert module.encoder.attention.in_proj_bias.abs().sum() == 0


def test_a_parent_overrules_its_children_as_in_its_constructor():
    module = nn.Transformer(16, 2, 1, 1, 24, batch_first=True)
    initialise = make_initialiser(module)
    stds = []
    for seed in range(4):
        initialise(module, lambda _, seed=seed: seed)
        stds.append(module.decoder.layers[0].linear1.weight.std().item())
    xavier = (2 / (16 + 24)) ** 0.5
    assert sum(stds) / 4 == pytest.approx(xavier, rel=0.1)


def test_a_parent_that_resets_head_and_encoder_keeps_them_paired():
    class Parent(nn.Module):
        def __init__(self, num_classes, head_first):
            super().__init__()
            self.num_classes, self.head_first = num_classes, head_first
            self.encoder, self.head = nn.Linear(6, 10), nn.Linear(6, num_classes)
            self.reset_parameters()

        def reset_parameters(self):
            for part in (self.head, self.encoder) if self.head_first else (self.encoder, self.head):
                nn.init.normal_(part.weight, std=3.0)
                part.reset_parameters = None

    def start(num_classes, head_first):
        module = Parent(num_classes, head_first)
        return restart(module, ["encoder.weight"], make_initialiser(module), 4, 5)["encoder.weight"]

    with pytest.raises(PGEError, match=r"nothing resets encoder\.bias, head\.bias"):
        start(10, head_first=True)
    Parent.reset_parameters = lambda self: [nn.init.normal_(unit, std=3.0) for unit in reversed([*self.parameters()])]
    starts = [start(classes, head_first) for classes in (2, 10) for head_first in (True, False)]
    assert all(torch.equal(value, starts[0]) for value in starts)
    assert starts[0].std().item() == pytest.approx(3.0, rel=0.3)


def test_transformers_parents_overrule_children():
    """A residual projection has a smaller start, which the parent of the projection gives it."""
    module = GPT2Model(GPT2Config(vocab_size=10, n_positions=8, n_embd=32, n_layer=2, n_head=2))
    make_initialiser(module)(module, lambda _: 0)
    assert module.h[0].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 2, rel=0.1)
    assert module.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_model_loaded_from_disk_is_drawn_anew(tmp_path):
    config = BertConfig(vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=40)
    BertModel(config).save_pretrained(tmp_path)
    module = isolated_copy(nn.ModuleDict({"encoder": BertModel.from_pretrained(tmp_path), "head": nn.Linear(32, 3)}))
    before = {name: unit.detach().clone() for name, unit in module.named_parameters()}
    make_initialiser(module)(module, lambda _: 0)
    weights = [name for name, unit in before.items() if unit.ndim == 2]
    assert all(not torch.equal(before[name], module.get_parameter(name)) for name in weights)
    assert module.encoder.embeddings.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_bare_parameter_is_an_error_that_names_it_and_the_ways_out():
    module = nn.Sequential(nn.Linear(2, 2))
    module.register_parameter("scale", nn.Parameter(torch.zeros(3)))
    ways = r"Give a `factory`.*save_hyperparameters.*reset_parameters.*register_reset"
    with pytest.raises(PGEError, match=rf"nothing resets scale\. {ways}"):
        make_initialiser(module)(module, lambda _: 0)


def test_a_half_covered_parameter_is_an_error():
    class Half(nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(rows, 2))

        def reset_parameters(self):
            nn.init.normal_(self.weight[:2])

    module = Half(4)
    with pytest.raises(PGEError, match="nothing resets weight"):
        make_initialiser(module)(module, lambda _: 0)


@pytest.mark.parametrize("nested", [False, True])
def test_hyper_parameters_that_hold_a_module_are_not_reused(nested):
    class Wrapper(pl.LightningModule):
        def __init__(self, encoder):
            super().__init__()
            self.save_hyperparameters(logger=False)
            self.encoder = encoder["net"][0] if nested else encoder
            nn.init.constant_(self.encoder.weight, 3.0)

    net = nn.Linear(3, 4)
    module = Wrapper({"net": [net]} if nested else net)
    module.encoder.weight.data.fill_(5.0)
    initialise = make_initialiser(module)
    assert net.weight.eq(5.0).all()
    initialise(module, lambda _: 0)
    assert module.encoder.weight.unique().numel() == 12


def test_hyper_parameters_that_do_not_suffice_are_left_aside():
    class Partial(pl.LightningModule):
        def __init__(self, width, classes):
            super().__init__()
            self.save_hyperparameters("classes")
            self.encoder = nn.Linear(3, width)

    class Other(Partial):
        def __init__(self, classes=3, width=2):
            super().__init__(width, classes)

    for module in (Partial(4, 2), Other(3, width=8)):
        initialise = make_initialiser(module)
        initialise(module, lambda _: 0)
        assert module.encoder.weight.abs().max() < 3**-0.5


def test_hyper_parameters_of_a_parent_are_left_to_the_parent():
    class Child(Saved):
        def __init__(self, num_classes):
            super().__init__(num_classes)
            nn.init.constant_(self.head.weight, 0.25)

    class Open(Child):
        def __init__(self, num_classes, **others):
            super().__init__(num_classes)
            self.save_hyperparameters()

    for module in (Child(3), Open(3, unused=1)):
        make_initialiser(module)(module, lambda _: 0)
        assert module.head.weight.eq(0.25).all()


def test_buffers_that_a_constructor_does_not_make_stay_as_they_are():
    module = Saved(3)
    module.register_buffer("queue", torch.full((3,), 4.0))
    make_initialiser(module)(module, lambda _: 0)
    assert module.queue.eq(4.0).all()


@pytest.mark.parametrize("classes", [4, None])
def test_a_factory_of_another_module_is_refused(classes):
    module = Swept(3)
    initialise = make_initialiser(module, lambda: Swept(classes) if classes else nn.Linear(2, 2))
    expected = r"\[3, 10\], but got \[4, 10\]" if classes else "but got nothing"
    with pytest.raises(PGEError, match=expected):
        initialise(module, lambda _: 0)


def test_a_constructor_that_draws_more_than_before_is_still_seeded():
    calls = []

    def factory():
        calls.append(torch.dropout(torch.ones(3), 0.5, train=True))
        module = nn.Linear(3, 3)
        if len(calls) > 1:
            nn.init.normal_(module.bias)
        return module

    module = nn.Linear(3, 3)
    initialise = make_initialiser(module, factory)
    initialise(module, lambda _: 0)
    first = module.bias.detach().clone()
    initialise(module, lambda _: 0)
    assert torch.equal(module.bias, first)


def test_hashes_tell_values_apart():
    one, two = torch.arange(6.0).reshape(2, 3), torch.arange(6.0).reshape(2, 3)
    two[1, 2] = torch.nextafter(two[1, 2], torch.tensor(9.0))
    hashes = [hash_start({"unit": value})["unit"] for value in (one, one.t().contiguous().t(), two)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert len(hashes[0]) == 16


# Frozen weights


def test_only_trainable_units_of_the_encoder_are_returned_as_they_stand_in_the_module():
    module = Swept(3)
    module.encoder.linear.requires_grad_(False)
    shared = [name for name, _ in module.named_parameters() if name.startswith("encoder.")]
    clone = isolated_copy(module)
    start = restart(clone, shared, make_initialiser(module), 0, 0)
    assert set(shared) - start.keys() == {"encoder.linear.weight", "encoder.linear.bias"}
    assert all(value.data_ptr() == clone.get_parameter(name).data_ptr() for name, value in start.items())
    assert not any(value.requires_grad for value in start.values())
    assert_same(module.encoder.linear, clone.encoder.linear)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_thawed_on_the_copy_restarts(way):
    kind, with_factory = WAYS[way]
    module = kind(3)
    module.encoder.requires_grad_(False)
    initialise = make_initialiser(module, (lambda: kind(3)) if with_factory else None)
    shared = [name for name, _ in module.named_parameters() if name.startswith("encoder.")]
    frozen, thawed = isolated_copy(module), isolated_copy(module).requires_grad_(True)
    assert restart(frozen, shared, initialise, 0, 0) == {}
    start = restart(thawed, shared, initialise, 0, 0)
    assert_same(module.encoder, frozen.encoder)
    expected = started(kind, with_factory, 3, seed=0)[1]
    assert hash_start(start) == hash_start(expected)


def test_choosing_a_way_leaves_module_and_random_state_alone():
    module = Saved(3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    make_initialiser(module)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_restart_makes_one_further_copy_of_the_module_at_a_time_and_keeps_none():
    class Counted(pl.LightningModule):
        def __init__(self, width):
            super().__init__()
            self.save_hyperparameters()  # makes a reference cycle, which only a search for garbage ends
            self.encoder, self.head = nn.Linear(width, width), nn.Linear(width, 2)
            alive.add(self)
            counts.append(len(alive))

    alive, counts = weakref.WeakSet(), []
    module = Counted(4100)
    initialise = make_initialiser(module)
    restart(isolated_copy(module), ["encoder.weight", "encoder.bias"], initialise, 0, 0)
    assert list(alive) == [module]
    assert set(counts[1:]) == {2}


def test_complex_units_restart_too():
    class Spectral(pl.LightningModule):
        def __init__(self, modes):
            super().__init__()
            self.save_hyperparameters()
            self.encoder = nn.ParameterDict({"modes": torch.randn(modes, 4, dtype=torch.cfloat)})

    module = Spectral(5)
    starts = []
    for seed in (0, 0, 1):
        clone = isolated_copy(module)
        starts.append(restart(clone, ["encoder.modes"], make_initialiser(module), seed, 0)["encoder.modes"])
    assert starts[0].is_complex()
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
