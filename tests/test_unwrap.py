"""Names do not depend on what is wrapped around a module."""

import copy

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from helpers import Points
from pge_lightning.isolation.unwrap import plain


def compiled(module):
    return torch.compile(module, backend="eager")


def compiled_inside(module):
    module.encoder[0] = compiled(module.encoder[0])
    module.encoder = compiled(module.encoder)
    return module


def compiled_in_place(module):
    module.compile(backend="eager")
    return module


def from_fabric(module):
    return Fabric(accelerator="cpu").setup_module(module)


WRAPS = [compiled, compiled_inside, compiled_in_place, from_fabric, lambda m: from_fabric(compiled(m)), nn.DataParallel]


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_wrapped_module_has_the_names_and_tensors_of_the_plain_one(wrap):
    module = Points()
    expected = {name: value.data_ptr() for name, value in module.state_dict().items()}
    wrapped = wrap(module)
    names = list(dict(wrapped.named_parameters()))
    view = plain(wrapped)
    assert type(view) is Points
    assert {name: value.data_ptr() for name, value in view.state_dict().items()} == expected
    assert list(dict(wrapped.named_parameters())) == names


def test_a_plain_module_is_given_back():
    module = Points()
    assert plain(module) is module
    assert plain(module.encoder) is module.encoder
    assert plain(from_fabric(compiled(module))) is module
    module.encoder[0] = compiled(module.encoder[0])
    assert plain(module).head is module.head


def test_what_is_reached_in_two_ways_stays_one():
    part = compiled(nn.Linear(2, 2))
    module = nn.ModuleDict({"one": part, "other": part._orig_mod, "none": nn.Sequential(part)})
    module.register_module("nothing", None)
    view = plain(module)
    assert view.one is view.other is view.none[0]
    assert view.nothing is None
    assert list(dict(copy.deepcopy(view).named_parameters())) == ["one.weight", "one.bias"]
