"""Naming the transferred part."""

import pytest
import torch
from torch import nn

from helpers import Points
from pge_lightning.encoder import encoder_state, encoder_units
from pge_lightning.errors import PGEError


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


def test_integer_parameters_are_no_units():
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    module.encoder.register_parameter("table", nn.Parameter(torch.arange(3), requires_grad=False))
    assert encoder_units(module) == ["encoder.weight", "encoder.bias"]
