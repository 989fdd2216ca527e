"""Restart: seeded re-initialisation of every weight unit, equal for all data sets where the encoder is equal."""

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pge_lightning.clone import isolated_copy
from pge_lightning.draws import KeyedDraws, SeedOf, module_state
from pge_lightning.errors import PGEError
from pge_lightning.isolation import isolated_randomness
from pge_lightning.rebuild import Factory, Seeded, constructors, lacking, make_rebuild, seeded, used
from pge_lightning.sweep import Initialiser, fixed_state, make_sweep, swept

__all__ = ["Factory", "Initialiser", "hash_start", "loaded_units", "make_initialiser", "restart", "twins"]


def make_initialiser(
    module: nn.Module, factory: Factory | None = None, shared: Iterable[str] | None = None
) -> Initialiser:
    """Choose how a module is re-initialised.

    In this order: the user's factory; the module's constructor with saved hyper-parameters, or without any where it
    needs none; a sweep over the parts' own resets. The constructor has to make the whole encoder; parts of the head
    that it does not make are swept, so that the way does not depend on the head. Frozen parameters keep their values,
    unless they are a copy of trainable ones.

    Args:
        module: The module to be re-initialised, as the user has it.
        factory: Builds a fresh module of the same kind.
        shared: Names of the encoder's parameters, by default all.

    Returns:
        A function of a module of that kind and the seeds of its units, which re-initialises the module in place.

    Raises:
        PGEError: If the factory loads units instead of drawing them.
    """
    followers = twins(module)
    with isolated_randomness():
        way = _way(module, factory, shared)

    def initialise(copied: nn.Module, seed_of: SeedOf) -> None:
        way(copied, seed_of)
        _follow(copied, followers)

    return initialise


def _way(module: nn.Module, factory: Factory | None, shared: Iterable[str] | None) -> Initialiser:
    if factory is not None:
        build = seeded(factory)
        if loaded := loaded_units(module, build):
            raise PGEError(
                f"Expected a factory that draws all trainable units, but {', '.join(loaded)} are the same under every "
                "seed. They are probably loaded: build them without trained weights (from a configuration instead of "
                "`from_pretrained`), or freeze them."
            )
        return make_rebuild(build)
    for constructor in constructors(module):
        build = seeded(constructor)
        try:
            missing = used(build, lambda _: 0, partial(lacking, module))
        except Exception:  # ruff: ignore[try-except-continue] (it needs more than is known of it)
            continue
        if missing.intersection(missing if shared is None else shared):
            continue
        if loaded := loaded_units(module, build):
            rank_zero_info(
                f"The constructor of {type(module).__name__} loads {', '.join(loaded)} instead of drawing them, so "
                "that its parts' own resets start the restarts. For another start, give a `factory` that draws them."
            )
        else:
            return make_rebuild(build, make_sweep(missing) if missing else None)
    return make_sweep()


def loaded_units(module: nn.Module, build: Seeded) -> list[str]:
    """Trainable units that a constructor loads instead of drawing them.

    These are the same under two seeds, are neither constant nor a pattern of two values, and are something else after
    a sweep over the constructor's module. Computed tables, which no reset would draw, are no such units.

    Args:
        module: The user's module.
        build: Builds a fresh one from seeds.

    Returns:
        Names in the module's order.
    """
    before = used(build, lambda _: 0, lambda fresh: hash_start(_comparable(module, fresh)))
    return used(build, lambda _: 1, lambda fresh: _loaded(module, fresh, before))


def _loaded(module: nn.Module, fresh: nn.Module, before: dict[str, str]) -> list[str]:
    units = _comparable(module, fresh)
    same = {name for name, value in hash_start(units).items() if before.get(name) == value}
    suspects = {name: unit for name, unit in units.items() if name in same and not _plain(unit)}
    if not suspects:
        return []
    other = isolated_copy(fresh)  # for the factory may hand out what others hold
    state = module_state(other)
    with (draws := KeyedDraws(lambda _: 2, {name: name for name in state}, state, fixed_state(other))):
        left = swept(other, draws, tokens=False)
    return [name for name, unit in suspects.items() if name not in left and not other.get_parameter(name).equal(unit)]


def _comparable(module: nn.Module, fresh: nn.Module) -> dict[str, Tensor]:
    trainable = {name for name, unit in module.named_parameters() if unit.requires_grad} - lacking(module, fresh)
    known = {name: unit for name, unit in fresh.named_parameters() if name in trainable}
    return {name: unit.detach().to("cpu", torch.float32) for name, unit in known.items()}


def _plain(unit: Tensor) -> bool:
    """Whether a unit is constant or a pattern of two values, as nobody's training makes it."""
    return len(torch.unique(unit)) <= 2


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
        if all(_plain(unit) for unit in frozen.values()):
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
def _follow(module: nn.Module, followers: dict[str, list[str]]) -> None:
    """Copy restarted submodules to their frozen twins."""
    for name, others in followers.items():
        frozen = module.get_submodule(name)
        trained = [
            part for part in map(module.get_submodule, others) if any(u.requires_grad for u in part.parameters())
        ]
        if trained and not any(unit.requires_grad for unit in frozen.parameters()):
            values = module_state(trained[0])
            for key, value in module_state(frozen).items():
                value.copy_(values[key])


def restart(
    module: nn.Module, shared: list[str], initialise: Initialiser, seed: int, head_seed: int
) -> dict[str, Tensor]:
    """Re-initialise a module in place: the encoder from one seed, everything else from another.

    Args:
        module: A copy, on the CPU.
        shared: Names of all parameters of the encoder, also of frozen ones.
        initialise: From :func:`make_initialiser`.
        seed: The encoder's; equal for all data sets under a paired probe.
        head_seed: The head's.

    Returns:
        Trainable unit of the encoder to its initial values, ``[*shape]``, which share storage with the module.

    Raises:
        PGEError: If a unit is left uncovered.
    """
    head = {name for name, _ in module.named_parameters()}.difference(shared)
    initialise(module, lambda name: head_seed if name in head else seed)
    units = dict(module.named_parameters())
    return {name: units[name].detach() for name in shared if units[name].requires_grad}


def hash_start(start: dict[str, Tensor]) -> dict[str, str]:
    """Unit to a hash of its initial values, 16 hexadecimal digits."""
    return {
        name: hashlib.blake2b(value.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
        for name, value in start.items()
    }
