"""Twins: frozen submodules that are copies of others, as teachers are, and follow these through a restart."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pge_lightning.restart.draws import module_state

__all__ = ["follow", "is_plain", "numbers", "twins"]


def numbers(unit: Tensor) -> Tensor:
    """A unit's values as real numbers.

    Args:
        unit: ``[*shape]``.

    Returns:
        The same memory; complex numbers have a last dimension of two.
    """
    return torch.view_as_real(unit.detach()) if unit.is_complex() else unit.detach()


def is_plain(unit: Tensor) -> bool:
    """Whether a unit is constant or a pattern of two values, as no training makes it.

    Args:
        unit: Any numbers, ``[*shape]``.

    Returns:
        Whether it holds at most two values.

    >>> [is_plain(unit) for unit in (torch.ones(3), torch.eye(3), torch.arange(3.0))]
    [True, True, False]
    """
    return len(torch.unique(numbers(unit))) <= 2


def _looks(part: nn.Module) -> tuple[tuple[str, tuple[int, ...], tuple[float, ...]], ...]:
    """What parts that are copies of each other have in common, at little cost."""
    named = [(name, unit.detach()) for name, unit in part.named_parameters() if not is_lazy(unit)]
    return tuple((name, tuple(unit.shape), tuple(unit.flatten()[:4].tolist())) for name, unit in named)


def twins(module: nn.Module) -> dict[str, list[str]]:
    """Frozen submodules that are copies of other ones, as teachers are.

    Args:
        module: The user's module.

    Returns:
        Frozen submodule to the submodules with the same parameters, bit by bit. Constant parts are no copies.
    """
    parts = dict(module.named_modules())
    alike: dict[object, list[str]] = {}
    for name, part in parts.items():
        alike.setdefault(_looks(part), []).append(name)

    def found(name: str) -> list[str]:
        frozen = dict(parts[name].named_parameters())
        if all(is_plain(unit) for unit in frozen.values()):
            return []
        others = [other for other in alike[_looks(parts[name])] if not _nested(name, other)]
        return [o for o in others if all(unit.equal(frozen[n]) for n, unit in parts[o].named_parameters())]

    def search(name: str) -> Iterator[tuple[str, list[str]]]:
        units = list(parts[name].parameters())
        frozen = bool(units) and not any(is_lazy(unit) or unit.requires_grad for unit in units)
        if frozen and (others := found(name)):
            yield name, others
            return
        children = [f"{name}.{child}" if name else child for child, _ in parts[name].named_children()]
        for child in parts.keys() & children:
            yield from search(child)

    return dict(search(""))


def _nested(one: str, two: str) -> bool:
    return f"{one}.".startswith(f"{two}.") or f"{two}.".startswith(f"{one}.")


@torch.no_grad()
def follow(module: nn.Module, followers: dict[str, list[str]]) -> None:
    """Copy restarted submodules to their frozen twins, where one side is frozen and the other trainable.

    Args:
        module: A copy, which is changed in place.
        followers: From :func:`twins`.
    """
    for name, others in followers.items():
        frozen = module.get_submodule(name)
        trained = [
            part for part in map(module.get_submodule, others) if any(u.requires_grad for u in part.parameters())
        ]
        if trained and not any(unit.requires_grad for unit in frozen.parameters()):
            values = module_state(trained[0])
            for key, value in module_state(frozen).items():
                value.copy_(values[key])
