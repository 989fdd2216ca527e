"""Hooks and functions that a module keeps belong to the module they are on, also after copying."""

import torch
from torch import nn

from pge_lightning.isolation.clone import isolated_copy


class Hooked(nn.Module):
    """Takes features from inside by a hook, as feature extractors do, and counts in what only hooks know."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 2), nn.Linear(2, 1)
        self.features, self.first = None, True
        counts, total = [], torch.zeros(())

        def keep(module, inputs, output):
            self.features = output

        def count(module, inputs):
            counts.append(len(counts))
            total.add_(1)

        def recurse(depth):
            return recurse(depth - 1) if depth else late

        self.body.register_forward_hook(keep)
        self.body.register_forward_pre_hook(count)
        self.score = lambda: (self.head(self.features), len(counts), float(total))
        self.steps = [lambda x: self.body(x)]
        self.recurse, self.constant = recurse, lambda: 1
        for late in ():  # never bound: an empty cell
            recurse(late)

    def forward(self, x):
        return self.steps[0](x)


def test_hooks_and_functions_of_a_copy_use_the_copy():
    module = Hooked()
    clone = isolated_copy(module)
    with torch.no_grad():
        for unit in clone.parameters():
            unit.fill_(1)
    for _ in range(2):
        clone(torch.ones(1, 3))
    assert module.features is None
    assert clone.features.tolist() == [[4.0, 4.0]]
    assert clone.score()[0].tolist() == [[9.0]]
    assert clone.score()[1:] == (2, 2.0)
    module(torch.ones(1, 3))
    assert module.score()[1:] == (1, 1.0)
    assert clone.score()[1:] == (2, 2.0)


def test_functions_that_enclose_nothing_copied_stay_as_they_are():
    module = Hooked()
    clone = isolated_copy(module)
    assert clone.constant is module.constant
    assert clone.recurse is module.recurse
    assert clone.score is not module.score
