"""Sweep: re-initialise every part of a module by whatever reset it has, and name what nothing resets."""

import copy
import inspect
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pge_lightning.errors import PGEError
from pge_lightning.restart.draws import KeyedDraws, Label, SeedOf, module_state, settle
from pge_lightning.restart.reparametrised import plain_weights
from pge_lightning.restart.resets import is_token, registered_reset, reset_adapters, reset_tokens

__all__ = ["Initialiser", "fixed_state", "make_sweep", "swept"]

Initialiser: TypeAlias = Callable[[nn.Module, SeedOf], None]


def fixed_state(module: nn.Module) -> dict[str, Tensor]:
    """What a restart leaves alone: frozen parameters, and buffers of parts in which all parameters are frozen.

    Args:
        module: Any module.

    Returns:
        Name to tensor, sharing storage with the module.
    """
    flags = {name: [unit.requires_grad for unit in part.parameters()] for name, part in module.named_modules()}
    frozen = [name for name, trainable in flags.items() if trainable and not any(trainable)]
    prefixes = tuple(f"{name}." if name else "" for name in frozen)
    return {
        name: value
        for name, value in module_state(module).items()
        if (isinstance(value, nn.Parameter) and not value.requires_grad) or name.startswith(prefixes)
    }


def _reset(part: nn.Module) -> None:
    """Call what was registered for a part, or its own reset, whichever name it has."""
    registered = registered_reset(part)
    reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
    if registered is not None:
        registered(part)
    elif callable(reset):
        reset()


def _transformers(module: nn.Module) -> dict[str, Any]:
    """Models of Hugging Face's transformers, by name; what PEFT wraps around one is none."""
    return {
        name: part
        for name, part in module.named_modules()
        if callable(getattr(type(part), "_init_weights", None)) and hasattr(part, "config")
    }


def _within(name: str, outer: str) -> bool:
    return not outer or f"{name}.".startswith(f"{outer}.")


def _reset_transformers(module: nn.Module, draws: KeyedDraws) -> None:
    """Hugging Face models initialise each of their parts; where one is inside another, the inner one does."""
    models = _transformers(module)
    if models:
        for value in module_state(module).values():
            vars(value).pop("_is_hf_initialized", None)
    for name, part in reversed([*module.named_modules()]):
        outer = [model for model in models if _within(name, model)]
        if outer and registered_reset(part) is None:
            draws.enter(name)
            models[max(outer, key=len)]._init_weights(part)


def _reset_from_configuration(module: nn.Module, left: dict[str, Tensor], draws: KeyedDraws) -> None:
    """What only a Hugging Face model's constructor sets is taken from a fresh one of the same configuration."""
    for outer, model in _transformers(module).items():
        names = [name for name in left if _within(name, outer) and left[name].isnan().any()]
        if names and len(inspect.signature(type(model)).parameters) == 1:
            draws.enter(outer)
            fresh = module_state(type(model)(copy.deepcopy(model.config)))
            for name in names:
                value = fresh.get(name.removeprefix(f"{outer}."))
                if value is not None and value.shape == left[name].shape:
                    left[name].copy_(value)


@torch.no_grad()
def swept(module: nn.Module, draws: KeyedDraws, *, tokens: bool = True) -> list[str]:
    """Reset all parts of a module in place, children before parents, as constructors do.

    Args:
        module: A copy; what is frozen in it stays as it is.
        draws: Under which this runs.
        tokens: Whether bare parameters with customary names are drawn, too.

    Returns:
        Names of trainable parameters that no reset touches, or only in part.
    """
    trainable = ((name, unit) for name, unit in module.named_parameters() if unit.requires_grad)
    units: dict[str, Tensor] = {name: unit for name, unit in trainable if not is_lazy(unit)}
    with plain_weights(module) as plain:
        for unit in units.values():
            unit.fill_(torch.nan)
        for name, part in reversed([*module.named_modules()]):
            draws.enter(name)
            _reset(part)
        draws.enter("")
        unwritten = _left(plain)
        for unit in unwritten.values():
            unit.zero_()
    _reset_transformers(module, draws)
    draws.enter("")
    reset_adapters(module)
    _reset_from_configuration(module, _left(units), draws)
    if tokens:
        draws.enter("")
        reset_tokens({name: unit for name, unit in _left(units).items() if is_token(name)})
    return [*unwritten, *_left(units)]


def _left(units: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: unit for name, unit in units.items() if unit.isnan().any()}


def make_sweep(needed: Container[str] | None = None) -> Initialiser:
    """The way that needs neither constructor nor configuration.

    Args:
        needed: Parameters that have to be covered, by default all that are trainable.

    Returns:
        A function of a module and the seeds of its units, which re-initialises the module in place.
    """
    names: dict[Label, str] = {}

    def initialise(module: nn.Module, seed_of: SeedOf) -> None:
        if lazy := [name for name, unit in module.named_parameters() if is_lazy(unit)]:
            raise PGEError(
                f"Expected a module that knows its shapes, but got the lazy {', '.join(lazy)}. Run one batch through "
                "it before."
            )

        def run(draws: KeyedDraws) -> nn.Module:
            if left := [name for name in swept(module, draws) if needed is None or name in needed]:
                raise PGEError(
                    f"Expected every weight unit to be re-initialised, but nothing resets {', '.join(left)}. Give a "
                    "`factory` that builds a fresh module, call `save_hyperparameters()` in the module, define "
                    "`reset_parameters()` in the part that owns them, or say what does it with `register_reset`."
                )
            return module

        state, fixed = module_state(module), fixed_state(module)
        own: dict[Label, str] = {name: name for name in state}
        settle(run, lambda learnt: KeyedDraws(seed_of, own | dict(learnt), state, fixed), names)

    return initialise
