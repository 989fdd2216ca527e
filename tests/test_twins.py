"""Twins: what is a frozen copy of something follows it, and nothing else does."""

import copy

import pytest
import torch
from torch import nn

from pge_lightning.isolation.clone import isolated_copy
from pge_lightning.restart import make_initialiser
from pge_lightning.restart.twins import twins
from restarts import assert_same


class Teacher(nn.Module):
    """Learns from a frozen copy of some of its parts, which lies elsewhere and deeper."""

    def __init__(self, width):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8))
        self.project = nn.Linear(8, 8)
        parts = {"encoder": copy.deepcopy(self.encoder), "project": copy.deepcopy(self.project)}
        self.teacher = nn.ModuleDict({"inner": nn.ModuleDict(parts)}).requires_grad_(False)
        self.other = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).requires_grad_(False)


@pytest.mark.parametrize("with_factory", [False, True])
def test_a_frozen_copy_follows_what_it_is_a_copy_of(with_factory):
    module = Teacher(5)
    initialise = make_initialiser(module, (lambda: Teacher(5)) if with_factory else None)
    clone = isolated_copy(module)
    initialise(clone, lambda _: 0)
    assert not torch.equal(clone.encoder[0].weight, module.encoder[0].weight)
    assert_same(clone.encoder, clone.teacher["inner"]["encoder"])
    assert_same(clone.project, clone.teacher["inner"]["project"])
    assert_same(clone.other, module.other)
    assert twins(module) == {"teacher.inner.encoder": ["encoder"], "teacher.inner.project": ["project"]}


def test_a_frozen_part_that_differs_in_one_bit_is_no_copy():
    module = Teacher(5)
    unit = module.teacher["inner"]["encoder"][0].bias
    unit.data[5] = torch.nextafter(unit[5], torch.tensor(9.0))
    assert list(twins(module)) == ["teacher.inner.project"]
    clone = isolated_copy(module)
    make_initialiser(module)(clone, lambda _: 0)
    assert_same(module.teacher["inner"]["encoder"], clone.teacher["inner"]["encoder"])


def test_frozen_norms_are_no_copies_of_other_norms():
    module = nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(4).requires_grad_(False), nn.Linear(2, 2)])
    assert twins(module) == {}


@pytest.mark.parametrize("thawed", ["encoder", "teacher.inner.encoder"])
def test_of_two_frozen_copies_one_follows_the_one_that_is_thawed(thawed):
    module = Teacher(5).requires_grad_(False)
    clone = isolated_copy(module)
    clone.get_submodule(thawed).requires_grad_(True)
    make_initialiser(module)(clone, lambda _: 0)
    assert_same(clone.encoder, clone.teacher["inner"]["encoder"])
    assert not torch.equal(clone.encoder[0].weight, module.encoder[0].weight)
    assert_same(clone.project, module.project)
