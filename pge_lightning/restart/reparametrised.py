"""Reparametrised weights: shown as plain parameters while resets run, then put back through their reparametrisation."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, type_before_parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

__all__ = ["plain_weights"]

PutBack: TypeAlias = Callable[[], None]


def _plain(part: nn.Module, name: str, like: Tensor) -> None:
    vars(part).pop(name, None)
    part._parameters[name] = nn.Parameter(torch.full_like(like, torch.nan))


def _taken(part: nn.Module, name: str) -> Tensor:
    weight = part.get_parameter(name).detach()
    del part._parameters[name]
    return weight


def _through(parametrization: ParametrizationList, weight: Tensor) -> None:
    """Register a weight anew under the same parametrisations, as a constructor does, and keep what comes out."""
    for each in parametrization:
        if isinstance(each, _SpectralNorm) and weight.ndim > 1:
            each.load_state_dict(_SpectralNorm(weight, each.n_power_iterations, each.dim, each.eps).state_dict())
    fresh = ParametrizationList([*parametrization], nn.Parameter(weight), parametrization.unsafe)
    for name, original in fresh.named_parameters(recurse=False):
        parametrization.get_parameter(name).copy_(original)


def _lists(part: nn.Module) -> dict[str, ParametrizationList]:
    named = part.get_submodule("parametrizations").named_children() if is_parametrized(part) else ()
    return {name: each for name, each in named if isinstance(each, ParametrizationList)}


def _unparametrised(part: nn.Module) -> PutBack:
    kind, lists = type(part), _lists(part)
    weights = {name: getattr(part, name) for name in lists}
    part.__class__ = type_before_parametrizations(part)
    for name, weight in weights.items():
        _plain(part, name, weight)

    def put_back() -> None:
        weights = {name: _taken(part, name) for name in lists}
        part.__class__ = kind
        for name, parametrization in lists.items():
            _through(parametrization, weights[name])

    return put_back


def _without_weight_norm(part: nn.Module, hook: WeightNorm) -> PutBack:
    magnitude, direction = part.get_parameter(f"{hook.name}_g"), part.get_parameter(f"{hook.name}_v")
    _plain(part, hook.name, direction)

    def put_back() -> None:
        direction.copy_(weight := _taken(part, hook.name))
        magnitude.copy_(torch.norm_except_dim(weight, 2, hook.dim))
        setattr(part, hook.name, hook.compute_weight(part))

    return put_back


def _without_spectral_norm(part: nn.Module, hook: SpectralNorm) -> PutBack:
    original = part.get_parameter(f"{hook.name}_orig")
    _plain(part, hook.name, original)

    def put_back() -> None:
        original.copy_(_taken(part, hook.name))
        for vector in (part.get_buffer(f"{hook.name}_u"), part.get_buffer(f"{hook.name}_v")):
            F.normalize(vector.normal_(), dim=0, eps=hook.eps, out=vector)
        setattr(part, hook.name, original.detach())

    return put_back


def _hooked(part: nn.Module) -> list[WeightNorm | SpectralNorm]:
    return [hook for hook in part._forward_pre_hooks.values() if isinstance(hook, (WeightNorm, SpectralNorm))]


def _originals(part: nn.Module) -> dict[str, list[Tensor]]:
    """Reparametrised weight to the tensors from which its part computes it."""
    originals: dict[str, list[Tensor]] = {
        name: [*each.parameters(recurse=False)] for name, each in _lists(part).items()
    }
    for hook in _hooked(part):
        ends = ("_g", "_v") if isinstance(hook, WeightNorm) else ("_orig",)
        originals[hook.name] = [part.get_parameter(f"{hook.name}{end}") for end in ends]
    return originals


def _show(part: nn.Module) -> Iterator[PutBack]:
    if is_parametrized(part):
        yield _unparametrised(part)
    for hook in _hooked(part):
        yield _without_weight_norm(part, hook) if isinstance(hook, WeightNorm) else _without_spectral_norm(part, hook)


@contextmanager
def plain_weights(module: nn.Module) -> Generator[dict[str, Tensor]]:
    """Show each trainable reparametrised weight as a plain parameter of its part.

    Covers parametrisations of :mod:`torch.nn.utils.parametrize` (where one has no ``right_inverse``, the weight itself
    is its original, as in PyTorch) and the older hooks ``weight_norm`` and ``spectral_norm``. What is written to the
    plain parameters goes through the reparametrisation on leaving.

    Args:
        module: A copy, which is changed in place.

    Yields:
        Name to plain parameter, not a number before it is written.
    """
    shown, put_back = dict[str, Tensor](), list[PutBack]()
    for name, part in module.named_modules():
        originals = _originals(part)
        if any(unit.requires_grad for units in originals.values() for unit in units):
            put_back += _show(part)
            shown |= {f"{name}.{weight}".lstrip("."): part.get_parameter(weight) for weight in originals}
    yield shown  # ruff: ignore[fallible-context-manager] (after an error the copy is of no use)
    for each in put_back:
        each()
