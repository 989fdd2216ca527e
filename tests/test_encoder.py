"""Naming the transferred part."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    T5Model,
)

from helpers import Points
from pge_lightning.encoder import encoder_state, encoder_units, linear_head
from pge_lightning.errors import PGEError
from test_unwrap import WRAPS


class Nested(nn.Module):
    def __init__(self, **names):
        super().__init__()
        self.net = nn.Module()
        for name in names or ("backbone",):
            setattr(self.net, name, nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2)))
        self.head = nn.Linear(2, 2)


UNITS = ["net.backbone.0.weight", "net.backbone.0.bias", "net.backbone.1.weight", "net.backbone.1.bias"]
BUFFERS = ["net.backbone.1.running_mean", "net.backbone.1.running_var", "net.backbone.1.num_batches_tracked"]


@pytest.mark.parametrize(
    "encoder",
    [
        None,
        "net",
        "net.backbone",
        "*.backbone.*",
        lambda module: [name for name, _ in module.named_parameters() if "head" not in name],
    ],
)
def test_ways_to_name_it(encoder):
    module = Nested()
    assert encoder_units(module, encoder) == UNITS
    state = encoder_state(module, encoder)
    assert sorted(state) == sorted(UNITS + BUFFERS)
    assert state["net.backbone.1.running_mean"].data_ptr() == module.net.backbone[1].running_mean.data_ptr()


def test_the_empty_name_is_the_whole_module():
    module = Nested()
    assert encoder_units(module, "") == [name for name, _ in module.named_parameters()]
    assert encoder_state(module, "").keys() == module.state_dict().keys()


def test_a_callable_may_take_single_parameters():
    module = Nested()
    names = ["net.backbone.1.weight"]
    assert encoder_units(module, lambda _: names) == names
    assert sorted(encoder_state(module, lambda _: names)) == sorted(names + BUFFERS)


def test_the_outermost_conventional_name_counts():
    module = Nested()
    module.net.backbone.features = nn.Linear(2, 2)
    assert encoder_units(module) == [*UNITS, "net.backbone.features.weight", "net.backbone.features.bias"]
    module.net.backbone.features = nn.ReLU()
    assert encoder_units(module) == UNITS


def test_no_prefix_of_a_name_counts():
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2), "encoder_head": nn.Linear(2, 2)})
    assert encoder_units(module) == ["encoder.weight", "encoder.bias"]
    assert encoder_units(module, "encoder") == ["encoder.weight", "encoder.bias"]


def test_none_or_two_found_is_an_error_with_the_choices():
    with pytest.raises(PGEError, match=r"found \[\].*a submodule \(here \['net', 'head'\]\)"):
        encoder_units(Nested(trunk=1))
    with pytest.raises(PGEError, match=r"found \['net\.backbone', 'net\.features'\].*\['net', 'head'\]"):
        encoder_units(Nested(backbone=1, features=1))


@pytest.mark.parametrize("encoder", ["bakcbone", "*.bakcbone.*", lambda _: []])
def test_a_name_without_parameters_is_an_error_with_the_choices(encoder):
    for function in (encoder_units, encoder_state):
        with pytest.raises(PGEError, match=r"but got none\. Name a part that exists, of \['net', 'head'\]"):
            function(Nested(), encoder)


def test_frozen_units_are_no_units_and_a_frozen_encoder_is_an_error():
    module = Points()
    module.encoder[0].requires_grad_(False)
    units = encoder_units(module)
    assert units == [f"encoder.{part}.{kind}" for part in (1, 4) for kind in ("weight", "bias")]
    assert "encoder.0.weight" in encoder_state(module)
    module.encoder.requires_grad_(False)
    with pytest.raises(PGEError, match=r"but got 6 frozen ones\. Unfreeze"):
        encoder_units(module)
    assert len(encoder_units(module, thaw=True)) == 6
    assert len(encoder_state(module)) == 9


def test_integer_parameters_are_no_units_and_complex_ones_are():
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    module.encoder.register_parameter("table", nn.Parameter(torch.arange(3), requires_grad=False))
    module.encoder.register_parameter("wave", nn.Parameter(torch.randn(2, dtype=torch.complex64)))
    for thaw in (False, True):
        assert encoder_units(module, thaw=thaw) == ["encoder.weight", "encoder.bias", "encoder.wave"]


def test_a_tied_parameter_is_a_unit_whichever_name_comes_first():
    module = nn.ModuleDict({"head": nn.Linear(2, 3, bias=False), "encoder": nn.Embedding(3, 2)})
    module.encoder.weight = module.head.weight
    assert encoder_units(module) == ["head.weight"]
    assert list(encoder_state(module)) == ["encoder.weight"]


def test_a_module_without_parameters_is_told_to_make_them():
    with pytest.raises(PGEError, match=r"with parameters, but Sequential has none.*`configure_model`, call it first"):
        encoder_units(nn.Sequential())


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("encoder", [None, "encoder", "encoder.*", lambda _: ["encoder.0.weight"]])
def test_wrappers_do_not_change_names(wrap, encoder):
    expected, module = Points(), wrap(Points())
    assert encoder_units(module, encoder) == encoder_units(expected, encoder)
    assert list(encoder_state(module, encoder)) == list(encoder_state(expected, encoder))


# Hugging Face models


def small(kind, **options):
    if kind.__name__.startswith("T5"):
        return kind(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20, **options))
    if kind.__name__.startswith("GPT2"):
        return kind(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, eos_token_id=1, bos_token_id=1, **options))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return kind(BertConfig(**sizes, vocab_size=20, **options))


class Holds(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.head = nn.Linear(8, 2)


def lora(model, **options):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"], **options))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: Holds(model=small(BertModel)), "model"),
        (lambda: Holds(encoder=small(BertModel)), "encoder"),
        (lambda: Holds(backbone=Holds(bert=small(BertModel))), "backbone"),
        (lambda: Holds(net=Holds(bert=small(BertModel))), "net.bert"),
        (lambda: Holds(model=small(BertForSequenceClassification, num_labels=3)), "model.bert"),
        (lambda: Holds(model=small(GPT2LMHeadModel)), "model.transformer"),
        (lambda: Holds(model=small(T5Model)), "model"),
        (lambda: Holds(model=small(T5ForConditionalGeneration)), "model.encoder"),
        (lambda: small(BertForSequenceClassification), "bert"),
        (lambda: small(BertModel), ""),
        (lambda: Holds(model=lora(small(BertModel))), "model.base_model.model"),
        (lambda: Holds(model=lora(small(BertForSequenceClassification))), "model.base_model.model.bert"),
        (lambda: Holds(model=torch.compile(small(BertModel), backend="eager")), "model"),
    ],
)
def test_the_pretrained_base_is_the_encoder(build, expected):
    module = build()
    assert encoder_units(module) == encoder_units(module, expected)
    assert encoder_state(module).keys() == encoder_state(module, expected).keys()


def test_two_pretrained_models_are_ambiguous():
    module = Holds(text=small(BertModel), other=small(GPT2LMHeadModel))
    with pytest.raises(PGEError, match=r"found \['other\.transformer', 'text'\]"):
        encoder_units(module)
    with pytest.raises(PGEError, match=r"found \['features', 'text'\]"):
        encoder_units(Holds(text=small(BertModel), features=nn.Linear(2, 2)))


HEADS = {
    "one layer": lambda: nn.Linear(2, 5),
    "without bias": lambda: nn.Linear(2, 5, bias=False),
    "frozen": lambda: nn.Linear(2, 5).requires_grad_(False),
    "behind what has no weights": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(2, 5)),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_that_is_one_linear_layer_is_found(kind):
    module = Nested()
    module.head = HEADS[kind]()
    layer = next(part for part in module.head.modules() if isinstance(part, nn.Linear))
    found = linear_head(module)
    assert list(found) == [name for name, _ in layer.named_parameters()]
    for name, value in found.items():
        assert torch.equal(value, layer.get_parameter(name))
        assert not value.requires_grad


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 5)),
        nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 5)),
        nn.Conv1d(2, 5, 1),
        nn.Bilinear(2, 2, 5),
        nn.Identity(),
    ],
)
def test_any_other_head_is_none(head):
    module = Nested()
    module.head = head
    assert linear_head(module) == {}


def test_the_head_is_what_is_not_transferred():
    module = Points()
    assert torch.equal(linear_head(module)["weight"], module.head.weight)
    assert linear_head(module, "") == {}
    assert linear_head(module, "*.weight") == {}
    most = [name for name, _ in module.named_parameters() if not name.startswith("encoder.4")]
    assert torch.equal(linear_head(module, lambda _: most)["weight"], module.encoder[4].weight)
    with pytest.raises(PGEError, match="encoder='nowhere'"):
        linear_head(module, "nowhere")


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_head_of_a_wrapped_module_is_found(wrap):
    module = Points()
    expected = module.head.weight.detach().clone()
    assert torch.equal(linear_head(wrap(module))["weight"], expected)


def test_heads_of_hugging_face_models():
    sizes = {"vocab_size": 32, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    classifier = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=8, num_labels=3))
    assert torch.equal(linear_head(classifier)["bias"], classifier.classifier.bias)
    tied = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    assert linear_head(tied) == {}
