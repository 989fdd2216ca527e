"""Initialiser: the way in which a module is re-initialised, and the restart that goes it."""

import hashlib
from collections.abc import Iterable
from functools import partial

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from pge_lightning.errors import PGEError
from pge_lightning.isolation import isolated_copy, isolated_randomness
from pge_lightning.restart.draws import KeyedDraws, SeedOf, module_state
from pge_lightning.restart.rebuild import Factory, Seeded, constructors, lacking, make_rebuild, seeded, used
from pge_lightning.restart.sweep import Initialiser, fixed_state, make_sweep, swept
from pge_lightning.restart.twins import follow, is_plain, numbers, twins

__all__ = ["Factory", "Initialiser", "hash_start", "make_initialiser", "restart"]


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
        follow(copied, followers)

    return initialise


def _way(module: nn.Module, factory: Factory | None, shared: Iterable[str] | None) -> Initialiser:
    if factory is not None:
        build = seeded(factory)
        if loaded := _loaded(module, build, used(build, lambda _: 0, partial(_sums, module))):
            raise PGEError(
                f"Expected a factory that draws all trainable units, but {', '.join(loaded)} are the same under every "
                "seed. They are probably loaded: build them without trained weights (from a configuration instead of "
                "`from_pretrained`), or freeze them."
            )
        return make_rebuild(build)
    for constructor in constructors(module):
        build = seeded(constructor)
        try:
            missing, sums = used(build, lambda _: 0, lambda fresh: (lacking(module, fresh), _sums(module, fresh)))
        except Exception:  # ruff: ignore[try-except-continue] (it needs more than is known of it)
            continue
        if missing.intersection(missing if shared is None else shared):
            continue
        if loaded := _loaded(module, build, sums):
            rank_zero_info(
                f"The constructor of {type(module).__name__} loads {', '.join(loaded)} instead of drawing them, so "
                "that its parts' own resets start the restarts. For another start, give a `factory` that draws them."
            )
        else:
            return make_rebuild(build, make_sweep(missing) if missing else None)
    return make_sweep()


def _loaded(module: nn.Module, build: Seeded, sums: dict[str, tuple[float, float]]) -> list[str]:
    """Trainable units that are the same as under another seed, but not what a sweep makes of them: loaded ones."""

    def find(fresh: nn.Module) -> list[str]:
        again, units = _sums(module, fresh), _comparable(module, fresh)
        # Constants and simple patterns are nobody's training; tables that a constructor computes, no reset would draw.
        suspects = {name: unit for name, unit in units.items() if again[name] == sums.get(name) and not is_plain(unit)}
        if not suspects:
            return []
        other = isolated_copy(fresh)  # for the factory may hand out what others hold
        state = module_state(other)
        with (draws := KeyedDraws(lambda _: 2, {name: name for name in state}, state, fixed_state(other))):
            left = swept(other, draws, tokens=False)
        drawn = _comparable(module, other)
        return [name for name, unit in suspects.items() if name not in left and not drawn[name].equal(unit)]

    return used(build, lambda _: 1, find)


def _sums(module: nn.Module, fresh: nn.Module) -> dict[str, tuple[float, float]]:
    """By which equal units are told from drawn ones, at little cost."""
    units = _comparable(module, fresh)
    return {name: (unit.sum(dtype=torch.float64).item(), unit.norm().item()) for name, unit in units.items()}


def _comparable(module: nn.Module, fresh: nn.Module) -> dict[str, Tensor]:
    trainable = {name for name, unit in module.named_parameters() if unit.requires_grad} - lacking(module, fresh)
    known = {name: unit for name, unit in fresh.named_parameters() if name in trainable}
    return {name: numbers(unit).to("cpu", torch.float32) for name, unit in known.items()}


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
        name: hashlib.blake2b(value.contiguous().flatten().numpy().data, digest_size=8).hexdigest()
        for name, value in start.items()
    }
