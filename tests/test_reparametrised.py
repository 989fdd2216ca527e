"""Reparametrised weights: started as their constructors start them, and bound by what binds them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from pge_lightning.errors import PGEError
from pge_lightning.restart import make_initialiser
from pge_lightning.restart.reparametrised import plain_weights
from restarts import assert_like_fresh, assert_same, drawn, restarted, values


@pytest.fixture(autouse=True)
def same_numbers_in_each_run():
    torch.manual_seed(0)


pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


def old_weight_norm(layer, **options):
    with torch.no_grad():
        return nn.utils.weight_norm(layer, **options)


class Symmetric(nn.Module):
    """Has no inverse: the weight itself is the original."""

    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2

    def right_inverse(self, weight):
        return weight * 2


class Scaled(nn.Module):
    """Learns something of its own, which nothing resets."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, weight):
        return weight * self.scale


def parametrised(layer, *parametrizations):
    for each in parametrizations:
        parametrize.register_parametrization(layer, "weight", each)
    return layer


KINDS = {
    "weight_norm": lambda: weight_norm(nn.Linear(30, 20)),
    "weight_norm_whole": lambda: weight_norm(nn.Conv1d(10, 20, 3), dim=None),
    "spectral_norm": lambda: spectral_norm(nn.Linear(30, 20)),
    "spectral_norm_transposed": lambda: spectral_norm(nn.ConvTranspose2d(8, 20, 3)),
    "orthogonal_square": lambda: orthogonal(nn.Linear(20, 20)),
    "orthogonal_tall": lambda: orthogonal(nn.Linear(20, 30)),
    "orthogonal_wide": lambda: orthogonal(nn.Linear(30, 20), use_trivialization=False),
    "orthogonal_cayley": lambda: orthogonal(nn.Linear(20, 20), orthogonal_map="cayley", use_trivialization=False),
    "inverse": lambda: parametrised(nn.Linear(30, 20), Halved()),
    "no_inverse": lambda: parametrised(nn.Linear(20, 20), Symmetric()),
    "chain": lambda: parametrised(nn.Linear(20, 20), Halved(), Symmetric()),
    "recurrent": lambda: weight_norm(nn.LSTM(10, 20), "weight_hh_l0"),
    "old_weight_norm": lambda: old_weight_norm(nn.Conv1d(10, 20, 3)),
    "old_weight_norm_whole": lambda: old_weight_norm(nn.Linear(30, 20), dim=None),
    "old_spectral_norm": lambda: old_spectral_norm(nn.Linear(30, 20)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_starts_are_those_of_the_constructor(kind):
    assert_like_fresh(lambda: nn.ModuleList([KINDS[kind]()]), constant=1e-6)


def inputs(layer):
    """Something to call a layer with."""
    if isinstance(layer, nn.LSTM):
        return torch.ones(2, 3, 10)
    if isinstance(layer, nn.Linear):
        return torch.ones(2, layer.in_features)
    return torch.ones(2, layer.in_channels, *[5] * (layer.weight.ndim - 2))


@pytest.mark.parametrize("kind", KINDS)
def test_what_restarts_is_the_weight_itself(kind):
    restarts = [restarted(nn.ModuleList([KINDS[kind]()]), seed)[0] for seed in range(4)]
    weights = []
    for layers in (restarts, [KINDS[kind]() for _ in range(4)]):
        for layer in layers * 10:  # spectral norms are estimated step by step
            layer(inputs(layer))
        weights.append(torch.stack([layer.weight_hh_l0 if kind == "recurrent" else layer.weight for layer in layers]))
    assert weights[0].std().item() == pytest.approx(weights[1].std().item(), rel=0.1)
    assert not torch.equal(weights[0][0], weights[0][1])


def test_weights_stay_within_their_bounds():
    layers = [orthogonal(nn.Linear(20, 20)), spectral_norm(nn.Linear(20, 20)), weight_norm(nn.Linear(20, 20))]
    square, spectral, normed = restarted(nn.ModuleList(layers))
    torch.testing.assert_close(square.weight @ square.weight.T, torch.eye(20), atol=1e-5, rtol=0)
    assert torch.linalg.matrix_norm(spectral.weight, 2).item() == pytest.approx(1, abs=0.05)
    magnitude, direction = normed.parametrizations.weight.original0, normed.parametrizations.weight.original1
    torch.testing.assert_close(magnitude, direction.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_neighbour_changes_nothing(kind):
    layer = KINDS[kind]()
    alone = restarted(nn.ModuleDict({"encoder": layer}))
    both = restarted(nn.ModuleDict({"another": KINDS[kind](), "head": nn.Linear(20, 3), "encoder": layer}))
    assert_same(alone, both)
    buffers = dict(both.named_buffers())
    assert all(torch.equal(value, buffers[name]) for name, value in alone.named_buffers())


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_ones_keep_their_values(kind):
    module = nn.ModuleList([KINDS[kind]().requires_grad_(False), nn.Linear(3, 3)])
    clone = restarted(module)
    assert_same(module, clone, [name for name, _ in module.named_parameters() if name.startswith("0.")])
    assert all(torch.equal(value, clone.get_buffer(name)) for name, value in module.named_buffers())
    assert drawn(module) == {"1.weight", "1.bias"}


def test_half_frozen_ones_restart_in_the_other_half():
    module = nn.ModuleList([weight_norm(nn.Linear(6, 4))])
    magnitude = module[0].parametrizations.weight.original0.requires_grad_(False)
    magnitude.fill_(7.0)
    assert restarted(module)[0].parametrizations.weight.original0.eq(7.0).all()
    assert drawn(module) == {"0.bias", "0.parametrizations.weight.original1"}


def test_a_parametrisation_may_learn_something_that_resets_itself():
    class Own(Scaled):
        def reset_parameters(self):
            nn.init.constant_(self.scale, 2.0)

    module = nn.ModuleList([parametrised(nn.Linear(4, 4), Own())])
    assert restarted(module)[0].parametrizations.weight[0].scale.eq(2)
    with pytest.raises(PGEError, match=r"nothing resets 0\.parametrizations\.weight\.0\.scale\."):
        make_initialiser(module := nn.ModuleList([parametrised(nn.Linear(4, 4), Scaled())]))(module, lambda _: 0)


def test_a_reparametrised_weight_that_nothing_resets_is_named():
    class Bare(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(size, size))

    for reparametrise in (orthogonal, weight_norm, old_weight_norm):
        module = nn.ModuleDict({"part": reparametrise(Bare(3))})
        with pytest.raises(PGEError, match=r"nothing resets part\.weight\."):
            restarted(module)


def test_plain_weights_are_parameters_for_a_while():
    layer = weight_norm(nn.Linear(3, 2))
    before, kind = values(layer), type(layer)
    with torch.no_grad(), plain_weights(layer) as shown:
        assert type(layer) is nn.Linear
        assert shown["weight"] is layer.weight
        assert layer.weight.isnan().all()
        layer.weight.fill_(2.0)
    assert type(layer) is kind
    assert layer.weight.eq(2.0).all()
    assert list(before) == [name for name, _ in layer.named_parameters()]
