"""Loading an encoder: in place, by name and shape, with a word on every name."""

import pytest
import torch
from torch import nn

from pge_lightning.encoder import encoder_state
from pge_lightning.errors import PGEError
from pge_lightning.load import load_encoder
from trainer_helpers import Net, frozen, module_state


def test_another_head_and_extra_units_are_skipped_with_their_reasons():
    torch.manual_seed(0)
    module, source = Net(classes=3), Net(classes=10)
    source.extra = nn.Linear(2, 2, bias=False)
    before = {name: id(value) for name, value in module.state_dict(keep_vars=True).items()}
    head = frozen(dict(module.head.named_parameters()))
    report = load_encoder(module, source.state_dict())
    assert report.skipped == {
        "head.weight": "shape [10, 4], not [3, 4]",
        "head.bias": "shape [10], not [3]",
        "extra.weight": "not in the model",
    }
    assert frozen(encoder_state(module, "encoder")) == frozen(encoder_state(source, "encoder"))
    assert frozen(dict(module.head.named_parameters())) == head
    assert {name: id(value) for name, value in module.state_dict(keep_vars=True).items()} == before
    assert "skipped head.bias: shape [10], not [3]" in str(report)


def test_loading_casts_to_the_models_type():
    module, source = Net().to(torch.bfloat16), Net()
    load_encoder(module, encoder_state(source, "encoder"))
    assert module.encoder[0].weight.dtype == torch.bfloat16
    assert torch.equal(module.encoder[0].weight, source.encoder[0].weight.to(torch.bfloat16))


def test_weights_of_another_architecture_are_refused():
    module = Net()
    before = frozen(module_state(module))
    with pytest.raises(PGEError, match=r"no name and shape of \['0.weight', '0.bias'\] is in Net"):
        load_encoder(module, nn.Linear(2, 2).state_dict(prefix="0."))
    assert frozen(module_state(module)) == before


def test_a_lazy_module_takes_the_shapes_of_the_source():
    source, module = nn.Linear(6, 4), nn.LazyLinear(4)
    before = [id(value) for value in module.parameters()]
    report = load_encoder(module, source.state_dict())
    assert report.loaded == ("weight", "bias")
    assert [id(value) for value in module.parameters()] == before
    x = torch.randn(2, 6)
    assert torch.equal(module(x), source(x))


def test_extra_state_of_other_types_is_left_alone():
    class Counting(nn.Linear):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            raise AssertionError(state)

    module, source = Counting(2, 2), nn.Linear(2, 2)
    report = load_encoder(module, source.state_dict())
    assert (report.loaded, report.left) == (("weight", "bias"), ())
    assert torch.equal(module.weight, source.weight)
