"""Rebuild: a fresh module from the user's own code, and the values that its constructor draws."""

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from pge_lightning.errors import PGEError
from pge_lightning.restart.draws import KeyedDraws, Label, SeedOf, drop, module_state, settle
from pge_lightning.restart.resets import reset_adapters
from pge_lightning.restart.sweep import Initialiser, fixed_state

__all__ = ["Factory", "Seeded", "constructors", "lacking", "make_rebuild", "seeded", "used"]

Factory: TypeAlias = Callable[[], nn.Module]
Seeded: TypeAlias = Callable[[SeedOf], nn.Module]
Result = TypeVar("Result")


def seeded(factory: Factory) -> Seeded:
    """A factory whose draws follow seeds: each unit's values depend on its own seed and name only.

    Args:
        factory: Builds a fresh module.

    Returns:
        A function of the units' seeds, which builds a fresh module.
    """
    names: dict[Label, str] = {}

    def run(draws: KeyedDraws) -> nn.Module:
        draws.enter("")
        return factory()

    return lambda seed_of: settle(run, lambda learnt: KeyedDraws(seed_of, learnt), names)


def make_rebuild(build: Seeded, rest: Initialiser | None = None) -> Initialiser:
    """The way that copies what the module's own code draws.

    Args:
        build: From :func:`seeded`.
        rest: The way for parameters that a fresh module lacks; by default these are an error.

    Returns:
        A function of a module and the seeds of its units, which re-initialises the module in place; what is frozen
        in it, and buffers that a fresh module lacks, stay as they are.
    """

    @torch.no_grad()
    def initialise(module: nn.Module, seed_of: SeedOf) -> None:
        if rest is not None:
            rest(module, seed_of)
        used(build, seed_of, lambda fresh: _copy(fresh, module, complete=rest is None))
        reset_adapters(module, drawn=False)

    return initialise


def used(build: Seeded, seed_of: SeedOf, use: Callable[[nn.Module], Result]) -> Result:
    """Build a fresh module, use it, and free its memory.

    Args:
        build: From :func:`seeded`.
        seed_of: The seeds of its units.
        use: Takes the module and keeps nothing of it.

    Returns:
        What ``use`` returns.
    """
    made = [build(seed_of)]
    result = use(made[0])
    drop(made)
    return result


def _copy(fresh: nn.Module, module: nn.Module, *, complete: bool) -> None:
    values, fixed = module_state(fresh), fixed_state(module)
    for name, unit in module_state(module).items():
        value = values.get(name)
        if name in fixed:
            continue
        if value is not None and not is_lazy(value) and value.shape == unit.shape:
            unit.copy_(value)
        elif isinstance(unit, nn.Parameter) and complete:
            raise PGEError(
                f"Expected the factory's module to hold '{name}' of shape {list(unit.shape)}, but got "
                f"{_shape(value)}. Give a factory of the same module."
            )


def _shape(value: Tensor | None) -> object:
    if value is None:
        return "nothing"
    return "a lazy one, which the factory could materialise by one batch" if is_lazy(value) else list(value.shape)


def constructors(module: nn.Module) -> Iterator[Factory]:
    """The module's own constructor with what is known of its arguments: saved hyper-parameters, or none needed.

    Args:
        module: The user's module.

    Yields:
        Factories that may fail, or build something else (:func:`lacking`).
    """
    kind = type(module)
    saved = dict(module.hparams) if isinstance(module, pl.LightningModule) else {}
    accepted = inspect.signature(kind).parameters
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in accepted.values()):
        saved = {name: value for name, value in saved.items() if name in accepted}
    parts = [value for value in tree_leaves(saved) if isinstance(value, nn.Module)]
    if saved and not any(True for part in parts for _ in part.parameters()):
        yield partial(_construct, kind, saved)
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    needed = [
        each
        for each in accepted.values()
        if each.kind not in variadic and (each.default is each.empty or not isinstance(module, pl.LightningModule))
    ]
    if not needed and not kind.__init__.__module__.startswith("torch."):
        yield partial(_construct, kind, {})


def _construct(kind: type[nn.Module], arguments: dict[str, Any]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fresh = kind(**copy.deepcopy(arguments))
        if isinstance(fresh, pl.LightningModule) and is_overridden("configure_model", fresh):
            fresh.configure_model()
    return fresh


def lacking(module: nn.Module, fresh: nn.Module) -> set[str]:
    """Parameters of a module that a fresh one does not hold by name and shape.

    Args:
        module: The user's module.
        fresh: What one of its :func:`constructors` built.

    Returns:
        Their names; also those whose shape is still unknown.
    """
    shapes = {name: unit.shape for name, unit in fresh.named_parameters() if not is_lazy(unit)}
    named = [*module.named_parameters()]
    return {name for name, unit in named if is_lazy(unit) or shapes.get(name) != unit.shape}
