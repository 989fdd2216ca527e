"""What has no `reset_parameters`, or more than that: every kind of part starts as its constructor starts it."""

import lightning.pytorch as pl
import peft
import pytest
import torch
import torch_geometric.nn as geometric
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTModel

from pge_lightning.errors import PGEError
from pge_lightning.restart import make_initialiser, resets
from pge_lightning.restart.resets import is_token, register_reset
from restarts import assert_like_fresh, assert_same, drawn, restarted


@pytest.fixture(autouse=True)
def same_numbers_in_each_run():
    torch.manual_seed(0)


ATTENTION = {
    "plain": {},
    "extra_keys": {"add_bias_kv": True},
    "other_widths": {"kdim": 12, "vdim": 20},
    "no_bias": {"bias": False},
}
PARTS = {
    **{f"attention_{name}": lambda kw=kw: nn.MultiheadAttention(24, 2, **kw) for name, kw in ATTENTION.items()},
    "embedding": lambda: nn.Embedding(30, 20, padding_idx=3),
    "bag": lambda: nn.EmbeddingBag(30, 20, padding_idx=3),
    "transformer": lambda: nn.Transformer(16, 2, 1, 1, 24),
    "lstm": lambda: nn.LSTM(12, 20, num_layers=2, bidirectional=True, proj_size=8),
    "gru": lambda: nn.GRUCell(12, 20),
    "bilinear": lambda: nn.Bilinear(8, 8, 10),
    "norms": lambda: nn.Sequential(nn.GroupNorm(2, 8), nn.RMSNorm(8), nn.InstanceNorm1d(8, affine=True), nn.PReLU(3)),
    "adaptive": lambda: nn.AdaptiveLogSoftmaxWithLoss(20, 60, [20]),
    "gcn": lambda: geometric.GCNConv(24, 20),
    "gat": lambda: geometric.GATConv(24, 10, heads=2),
    "sage": lambda: geometric.SAGEConv(24, 20),
    "gin": lambda: geometric.GINConv(nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 20)), train_eps=True),
    "graph_network": lambda: geometric.GCN(24, 20, 2, 4, norm="batch"),
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_start_as_their_constructors_start_them(kind):
    assert_like_fresh(lambda: nn.ModuleList([PARTS[kind]()]))


@pytest.mark.parametrize("kind", PARTS)
def test_parts_do_not_know_their_neighbours(kind):
    part = PARTS[kind]()
    alone = restarted(nn.ModuleDict({"encoder": part}))
    assert_same(alone, restarted(nn.ModuleDict({"before": PARTS[kind](), "encoder": part, "head": nn.Linear(20, 5)})))


@pytest.mark.parametrize("kind", ["embedding", "bag"])
def test_padding_rows_stay_zero(kind):
    part = PARTS[kind]()
    part.weight.data.fill_(5.0)
    weight = restarted(nn.ModuleList([part]))[0].weight
    assert weight[3].eq(0).all()
    assert weight[torch.arange(30) != 3].ne(0).all()


# Lazy parts


def test_lazy_parts_restart_once_they_know_their_shapes():
    module = nn.Sequential(nn.LazyConv1d(6, 3), nn.LazyBatchNorm1d(), nn.Flatten(), nn.LazyLinear(4))
    with pytest.raises(PGEError, match=r"but got the lazy 0\.weight, .*Run one batch"):
        make_initialiser(module)(module, lambda _: 0)
    module(torch.randn(2, 5, 8))
    assert drawn(module) == {"0.weight", "0.bias", "3.weight", "3.bias"}
    plain = nn.Sequential(nn.Conv1d(5, 6, 3), nn.BatchNorm1d(6), nn.Flatten(), nn.Linear(36, 4))
    assert_same(restarted(module), restarted(plain))


# Bare parameters


class Tokens(nn.Module):
    def __init__(self, width, *names):
        super().__init__()
        self.project = nn.Linear(width, width)
        for name in names:
            setattr(self, name, nn.Parameter(torch.zeros(1, 40, width)))
        self.register_tokens = nn.ParameterList([nn.Parameter(torch.zeros(4, width))])


def test_bare_tokens_are_drawn_from_the_customary_distribution_and_named():
    module = nn.ModuleDict({"encoder": Tokens(16, "cls_token", "pos_embed")})
    with pytest.warns(UserWarning, match=r"resets encoder\.cls_token, encoder\.pos_embed, .*tokens\.0: .*`factory`"):
        clone = restarted(module)
    for name in ("cls_token", "pos_embed"):
        unit = getattr(clone["encoder"], name)
        assert unit.std().item() == pytest.approx(0.02, rel=0.1)
        assert unit.abs().max() < 2
    assert not torch.equal(clone["encoder"].cls_token, clone["encoder"].pos_embed)


@pytest.mark.filterwarnings("ignore:Nothing in the module resets")
def test_bare_tokens_do_not_know_their_neighbours():
    one, two = Tokens(8, "cls_token"), Tokens(8, "mask_token", "cls_token", "dist_token")
    assert torch.equal(restarted(one).cls_token, restarted(two).cls_token)
    assert torch.equal(restarted(one).register_tokens[0], restarted(two).register_tokens[0])


def test_customary_names_of_tokens():
    names = "cls_token class_token class_embedding pos_embed pos_embedding position_embedding position_embeddings"
    names += " positional_embedding pos_emb mask_token dist_token register_tokens query_tokens query_embed queries"
    assert all(is_token(f"encoder.{name}") and is_token(f"{name}.0") for name in names.split())
    others = "weight bias gamma scale logit_scale temperature in_proj embedding token_type_scale position_bias_table"
    assert not any(is_token(f"cls_token.{name}") for name in others.split())


# The users' own parts


class Gate(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.open = nn.Parameter(torch.zeros(size, size))
        self.inner = nn.Linear(size, size)


class Narrow(Gate):
    """Inherits what is registered for its base, until it has its own."""


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(resets, "REGISTERED", {})


def start_gate(gate):
    nn.init.normal_(gate.open, std=3.0)
    nn.init.ones_(gate.inner.weight)


@pytest.mark.usefixtures("registry")
def test_registered_resets_come_after_the_children_and_hold_for_subclasses():
    module = nn.ModuleList([Gate(20), Narrow(20)])
    with pytest.raises(PGEError, match=r"nothing resets 0\.open, 1\.open\..*register_reset"):
        restarted(module)
    register_reset(Gate, start_gate)
    clone = restarted(module)
    assert clone[0].open.std().item() == pytest.approx(3.0, rel=0.2)
    assert clone[1].inner.weight.eq(1).all()
    assert clone[0].inner.bias.ne(0).all()
    assert drawn(module) == {"0.open", "0.inner.bias", "1.open", "1.inner.bias"}
    register_reset(Narrow, lambda gate: nn.init.constant_(gate.open, 2.0))
    clone = restarted(module)
    assert clone[1].open.eq(2.0).all()
    assert not clone[1].inner.weight.eq(1).any()
    assert not clone[0].open.eq(2.0).any()


@pytest.mark.usefixtures("registry")
def test_registered_resets_stand_in_for_those_of_models_around_them():
    model = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4))
    register_reset(nn.LayerNorm, lambda part: [nn.init.constant_(unit, 0.5) for unit in part.parameters()])
    clone = restarted(nn.ModuleList([model]))[0]
    assert clone.layernorm.weight.eq(0.5).all()
    assert clone.layernorm.bias.eq(0.5).all()


# Adapters


def bert():
    config = BertConfig(vocab_size=20, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=30)
    return BertForSequenceClassification(config)


def adapted(config):
    """An adapted model beside a head, in a module that saves nothing."""
    return nn.ModuleDict({"encoder": peft.get_peft_model(bert(), config), "head": nn.Linear(24, 3)})


TARGETS = ["query", "value"]
ADAPTERS = {
    "lora": lambda: peft.LoraConfig(r=16, target_modules=[*TARGETS, "word_embeddings"]),
    "gaussian": lambda: peft.LoraConfig(r=16, target_modules=TARGETS, init_lora_weights="gaussian"),
    "dora": lambda: peft.LoraConfig(r=16, target_modules=TARGETS, use_dora=True),
    "saved": lambda: peft.LoraConfig(r=16, target_modules=TARGETS, modules_to_save=["classifier"], bias="lora_only"),
    "ia3": lambda: peft.IA3Config(target_modules=TARGETS, feedforward_modules=[]),
    "loha": lambda: peft.LoHaConfig(r=16, target_modules=TARGETS),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=TARGETS, init_r=16, total_step=10),
    "prompt": lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=20),
}


def trainable(module):
    return [name for name, unit in module.named_parameters() if unit.requires_grad]


@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_start_as_peft_starts_them_and_the_base_stays(kind):
    module = adapted(ADAPTERS[kind]())
    for name in (names := trainable(module)):
        module.get_parameter(name).data.fill_(9.0)
    restarts = [restarted(module, seed) for seed in range(3)]
    fresh = [adapted(ADAPTERS[kind]()) for _ in range(3)]
    for name in names:
        mine, own = (torch.stack([each.get_parameter(name) for each in many]) for many in (restarts, fresh))
        if "magnitude" in name:
            layer = module.get_submodule(name.rpartition(".lora_magnitude")[0])
            assert torch.equal(mine[0], layer.base_layer.weight.norm(dim=1))
        elif own.std() == 0:
            assert torch.equal(mine, own), name
        else:
            assert not torch.equal(mine[0], mine[1]), name
            assert own.numel() < 400 or mine.std().item() == pytest.approx(own.std().item(), rel=0.15), name
    copies = ".original_module."
    frozen = [name for name, unit in module.named_parameters() if not unit.requires_grad and copies not in name]
    assert len(frozen) > 20
    assert_same(module, restarts[0], frozen)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha"])
def test_adapters_are_paired_whatever_the_head_is(kind):
    model = peft.get_peft_model(bert(), ADAPTERS[kind]())
    one = restarted(nn.ModuleDict({"encoder": model, "head": nn.Linear(24, 3)}))
    two = restarted(nn.ModuleDict({"head": nn.Linear(24, 7), "encoder": model}))
    assert_same(one["encoder"], two["encoder"])


class Adapted(pl.LightningModule):
    """Builds base and adapters itself, so that its hyper-parameters make fresh ones."""

    def __init__(self, rank=4):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = peft.get_peft_model(bert(), peft.LoraConfig(r=rank, target_modules=TARGETS, use_dora=True))


def test_magnitudes_follow_the_frozen_base_when_the_constructor_draws_another():
    module = Adapted(rank=6)
    clone = restarted(module)
    assert_same(module, clone, [name for name, unit in module.named_parameters() if not unit.requires_grad])
    layer = clone.encoder.get_submodule("base_model.model.bert.encoder.layer.0.attention.self.query")
    assert torch.equal(layer.lora_magnitude_vector["default"].weight, layer.base_layer.weight.norm(dim=1))
    assert layer.lora_B["default"].weight.eq(0).all()
    assert all("lora_A" in name for name in drawn(module))
    assert len(drawn(module)) == 2


def test_adapters_injected_without_a_wrapper_restart_too():
    model = bert()
    model.add_adapter(peft.LoraConfig(r=16, target_modules=TARGETS, init_lora_weights="gaussian"))
    names = trainable(module := nn.ModuleList([model]))
    assert drawn(module) == {name for name in names if "lora_A" in name}
    first = next(name for name in names if "lora_A" in name)
    assert restarted(module).get_parameter(first).std().item() == pytest.approx(1 / 16, rel=0.2)


def test_adapters_computed_from_the_base_are_refused():
    module = adapted(peft.LoraConfig(r=4, target_modules=TARGETS, init_lora_weights="pissa"))
    with pytest.raises(PGEError, match=r"drawn at random, but got one that PEFT computes.*init_lora_weights=True"):
        restarted(module)
