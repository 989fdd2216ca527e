"""Copies: whatever hangs on a module, a collection works on something of its own."""

import threading

import pytest
import torch
from torch import nn

from helpers import Points
from pge_lightning.clone import isolated_copy
from pge_lightning.errors import PGEError


def test_a_copy_is_float32_mute_and_training():
    module = Points().double().eval()
    clone = isolated_copy(module)
    assert {unit.dtype for unit in clone.parameters()} == {torch.float32}
    assert all(part.training for part in clone.modules())
    clone.log("any", 1.0)
    clone.log_dict({"any": 1.0})
    with torch.no_grad():
        clone.head.weight.fill_(3.0)
    assert not any(part.training for part in module.modules())
    assert module.head.weight.dtype == torch.float64
    assert module.head.weight.abs().max() < 1
    assert "log" not in vars(module)


def test_a_single_part_stays_in_evaluation():
    module = Points()
    module.encoder[1].eval()
    assert [part.training for part in isolated_copy(module).encoder] == [True, False, True, True, True]


def test_nested_lightning_modules_are_mute():
    outer = nn.ModuleDict({"inner": Points()})
    clone = isolated_copy(outer)
    assert clone.inner.log("any", 1.0) is None
    assert "log" in vars(clone.inner)
    assert "log" not in vars(outer.inner)


def test_what_cannot_be_copied_is_an_error():
    module = nn.Linear(2, 2)
    module.lock = threading.Lock()
    with pytest.raises(PGEError, match=r"`copy\.deepcopy` can copy, but got Linear: cannot pickle.*parametrizations"):
        isolated_copy(module)
