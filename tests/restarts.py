"""What the tests of re-initialisation share: restarted copies, and comparisons of many of them with fresh modules."""

import pytest
import torch

from pge_lightning.isolation import isolated_randomness
from pge_lightning.isolation.clone import isolated_copy
from pge_lightning.restart import make_initialiser


def restarted(module, seed=0, factory=None, shared=None):
    """A re-initialised copy."""
    initialise, clone = make_initialiser(module, factory, shared), isolated_copy(module)
    with isolated_randomness():
        initialise(clone, lambda _: seed)
    return clone


def values(module):
    return {name: unit.detach().clone() for name, unit in module.named_parameters()}


def assert_same(one, two, names=None):
    """Equal parameters, bit by bit."""
    one, two = values(one), values(two)
    for name in names or one:
        assert torch.equal(one[name], two[name]), name


def drawn(module, seeds=2, factory=None):
    """Names of parameters that differ under each pair of seeds."""
    many = [values(restarted(module, seed, factory)) for seed in range(seeds)]
    return {name for name in many[0] if not torch.equal(many[0][name], many[1][name])}


def assert_like_fresh(build, count=4, constant=1e-7, enough=400):
    """The distribution of a restart is that of the constructor: same constants, same spread."""
    module = build()
    restarts = [values(restarted(module, seed)) for seed in range(count)]
    fresh = [values(build()) for _ in range(count)]
    for name in fresh[0]:
        mine, own = (torch.stack([each[name] for each in group]) for group in (restarts, fresh))
        if own.std(0).max() < constant:
            torch.testing.assert_close(mine, own, msg=name)
        else:
            assert mine.std(0).max() > constant, name
            if own.numel() >= enough:
                assert mine.std().item() == pytest.approx(own.std().item(), rel=0.2), name
