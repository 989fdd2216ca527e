"""Draws: a unit's values come from its own seed and name, however the code that draws them is laid out."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from pge_lightning.isolation import isolated_randomness
from pge_lightning.restart.draws import KeyedDraws, module_state, settle
from pge_lightning.restart.rebuild import seeded


def direct(unit):
    nn.init.normal_(unit)


def cut_off(unit):
    """Draws again as often as it has to, which is another number of times under each seed."""
    nn.init.trunc_normal_(unit, std=1.0, a=-1.1, b=1.1)


def narrow(unit):
    nn.init.trunc_normal_(unit, std=1.0, a=0.5, b=0.8)


def orthogonal(unit):
    nn.init.orthogonal_(unit)


def sparse(unit):
    nn.init.sparse_(unit, 0.5)


def copied(unit):
    unit.data.copy_(torch.randn(unit.shape).mul(0.3))


def replaced(unit):
    unit.data = torch.rand(unit.shape) + 1


def cut_off_beside(unit):
    unit.data = nn.init.trunc_normal_(torch.zeros(unit.shape), std=1.0, a=-1.1, b=1.1).flip(0)


def of_numbers(unit):
    unit.data.copy_(torch.distributions.Beta(2.0, 3.0).sample(unit.shape))


FILLS = [direct, cut_off, narrow, orthogonal, sparse, copied, replaced, cut_off_beside, of_numbers]


def built(names, fill, seed=0, heads=()):
    """A module of equal parameters, all filled in the same way, in the order of their names."""

    def factory():
        module = nn.ParameterDict()
        for name in names:
            module[name] = nn.Parameter(torch.empty(7, 7))
        for name in names:
            fill(module[name])
        return module

    with isolated_randomness():
        return seeded(factory)(lambda name: seed + 1000 * (name in heads))


@pytest.mark.parametrize("fill", FILLS)
def test_a_unit_knows_neither_order_nor_neighbours(fill):
    expected = built(["a", "b", "c"], fill)
    assert len({tuple(value.flatten().tolist()) for value in expected.values()}) == 3
    for names in (["c", "b", "a"], ["b"], ["x", "b", "y", "z", "a"]):
        for name, value in built(names, fill).items():
            assert name not in expected or torch.equal(value, expected[name]), name


@pytest.mark.parametrize("fill", FILLS)
def test_units_follow_seeds_of_their_own(fill):
    one, two, three = built("ab", fill), built("ab", fill, heads="b"), built("ab", fill, seed=1)
    assert torch.equal(one["a"], two["a"])
    assert not torch.equal(one["b"], two["b"])
    assert not torch.equal(one["a"], three["a"])


def test_parameters_made_from_random_values_take_their_names_from_what_they_become():
    def factory(names):
        module = nn.Module()
        for name in names:
            setattr(module, name, nn.Parameter(0.02 * torch.randn(4, 4)))
        return module

    with isolated_randomness():
        one, two = (seeded(lambda names=names: factory(names))(lambda _: 3) for names in ("ab", "cba"))
    assert torch.equal(one.a, two.a)
    assert torch.equal(one.b, two.b)
    assert not torch.equal(one.a, one.b)


def test_copies_are_units_of_their_own_once_they_are_drawn():
    """PyTorch's Transformers copy one layer many times and draw all of them afterwards."""

    def factory(layers):
        layer = nn.TransformerEncoderLayer(8, 2, 8)
        module = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        for unit in reversed([*module.parameters()]):
            if unit.ndim > 1:
                nn.init.xavier_uniform_(unit)
        return module

    with isolated_randomness():
        two, three = (seeded(lambda n=n: factory(n))(lambda _: 0) for n in (2, 3))
    assert not torch.equal(two.layers[0].linear1.weight, two.layers[1].linear1.weight)
    for name, unit in two.named_parameters():
        assert torch.equal(unit, three.get_parameter(name)), name


def test_a_teacher_is_the_copy_of_its_student_wherever_its_name_comes():
    def factory(name):
        module = nn.ModuleDict({"student": nn.Linear(4, 4)})
        module[name] = copy.deepcopy(module["student"])
        return nn.ModuleDict(dict(sorted(module.items())))

    with isolated_randomness():
        one, two = (seeded(lambda name=name: factory(name))(lambda _: 0) for name in ("a_teacher", "teacher"))
    assert torch.equal(one["a_teacher"].weight, one["student"].weight)
    assert torch.equal(one["student"].weight, two["student"].weight)


def test_a_forward_pass_in_a_constructor_changes_nothing():
    class Probing(nn.Module):
        def __init__(self, probing):
            super().__init__()
            self.conv = nn.Conv1d(3, 5, 3)
            self.norm = nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(0.5))
            width = self.norm(self.conv(torch.randn(2, 3, 9))).flatten(1).shape[1] if probing else 35
            self.head = nn.Linear(width, 2)

    with isolated_randomness():
        one, two = (seeded(lambda probing=probing: Probing(probing))(lambda _: 0) for probing in (True, False))
    for name, unit in one.named_parameters():
        assert torch.equal(unit, two.get_parameter(name)), name


def test_buffers_are_units_too():
    def factory():
        module = nn.BatchNorm1d(3)
        module.register_buffer("queue", nn.functional.normalize(torch.randn(4, 5)), persistent=False)
        return module

    with isolated_randomness():
        one, two, other = (seeded(factory)(lambda _, seed=seed: seed) for seed in (0, 0, 1))
    assert torch.equal(one.queue, two.queue)
    assert not torch.equal(one.queue, other.queue)


def test_draws_that_end_nowhere_are_seeded_too():
    seen = []

    def factory():
        seen.append((torch.rand(3).tolist(), float(np.random.rand()), random.random()))
        return nn.Linear(2, 2)

    with isolated_randomness():
        build = seeded(factory)
        build(lambda _: 0)
        build(lambda _: 0)
        build(lambda _: 1)
    assert seen[-2] == seen[-3]
    assert all(one != other for one, other in zip(seen[-1], seen[-2], strict=True))


def test_what_is_learnt_once_serves_all_later_runs():
    calls = []

    def factory():
        calls.append(1)
        return nn.Linear(3, 3)

    with isolated_randomness():
        build = seeded(factory)
        first = build(lambda _: 0)
        assert len(calls) == 2
        assert torch.equal(first.weight, build(lambda _: 0).weight)
        build(lambda _: 1)
    assert len(calls) == 4


def test_code_that_changes_from_run_to_run_ends_after_three():
    calls = []

    def factory():
        calls.append(1)
        torch.rand(len(calls))
        for _ in calls:
            torch.zeros(2)
        return nn.ParameterDict({"unit": nn.Parameter(torch.zeros(2).normal_())})

    with isolated_randomness():
        seeded(factory)(lambda _: 0)
    assert len(calls) == 3


def test_fixed_tensors_cannot_be_written():
    module = nn.ModuleDict({"fixed": nn.Linear(3, 3), "free": nn.Linear(3, 3)})
    before = {name: value.detach().clone() for name, value in module_state(module).items()}
    fixed = {name: value for name, value in module_state(module).items() if name.startswith("fixed")}

    @torch.no_grad()
    def run(draws):
        draws.enter("")
        for unit in module.parameters():
            unit.normal_()
            unit[:1].fill_(3.0)
            unit.data.mul_(2.0)
            torch.add(unit, 1.0, out=unit)
        torch.add(module["fixed"].weight, 1.0, out=module["free"].weight)
        return module

    with isolated_randomness():
        settle(run, lambda names: KeyedDraws(lambda _: 0, names, module_state(module), fixed), {})
    assert all(
        torch.equal(value, before[name]) == name.startswith("fixed") for name, value in module_state(module).items()
    )
    assert torch.equal(module["free"].weight, before["fixed.weight"] + 1)
