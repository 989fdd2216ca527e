"""What an object holds."""

import random
from collections import deque
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from pge_lightning.isolation.reach import parts_of, reachable

TARGET = random.Random(0)


@dataclass(slots=True)
class Slotted:
    held: object
    unset: object


class Method:
    def __init__(self):
        self.held = TARGET

    def run(self):
        pass


def enclosing():
    def function():
        return TARGET_WITHIN, later

    TARGET_WITHIN = TARGET
    if not TARGET:
        later = 1
    return function


def slotted():
    value = Slotted(TARGET, None)
    del value.unset
    return value


def test_everything_that_holds_is_searched():
    holders = [
        {"a": [TARGET]},
        (TARGET,),
        deque([TARGET]),
        {TARGET},
        partial(print, TARGET),
        partial(print, end=TARGET),
    ]
    holders += [Method(), Method().run, enclosing(), slotted()]
    assert all(TARGET in reachable(holder) for holder in holders)
    loop = [TARGET]
    loop.append(loop)
    assert reachable(loop) == [loop, TARGET]


def test_what_is_no_part_of_a_loader_is_not_searched():
    module, many, deep = nn.Linear(1, 1), [TARGET] * 257, [[[TARGET]]]
    module.held = TARGET
    assert reachable(module) == [module]
    assert TARGET not in reachable(many)
    assert TARGET not in reachable(deep, depth=2)
    assert TARGET in reachable(deep, depth=3)
    assert reachable("text") == ["text"]


def test_parts_are_named_as_they_are_written():
    names = [name for name, _ in parts_of({"a": torch.ones(1), 2: [], "number": 1})]
    assert names == ["['a']", "[2]"]
    assert [name for name, _ in parts_of(Method())] == [".held"]
    assert [name for name, _ in parts_of(enclosing())] == ["'s TARGET_WITHIN"]
