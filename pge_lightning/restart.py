"""Restart: seeded re-initialisation of every weight unit, equal for all data sets where the encoder is equal."""

import hashlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pge_lightning.errors import PGEError
from pge_lightning.isolation import derive_seed, isolated_randomness, seed_all

__all__ = ["Factory", "Initialiser", "hash_start", "make_initialiser", "restart"]

Factory: TypeAlias = Callable[[], nn.Module]
Initialiser: TypeAlias = Callable[[nn.Module, int], None]


class _KeyedRandomness(TorchDispatchMode):  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    """Seed each random operation by the unit that it fills: the order of construction is mute.

    What fills no known unit is told apart by its kind, its shape and how often both came.

    Args:
        seed: The base of all seeds.
        filled: Takes an operation's number and its first argument, and names the unit.
    """

    def __init__(self, seed: int, filled: Callable[[int, Any], str | None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        self.seed, self.filled = seed, filled
        self.seen, self.drawn = dict[tuple[str, str], int](), list[Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        first = args[0] if args else None
        shape = tuple(first.shape) if isinstance(first, Tensor) else first
        key = str(func), self.filled(len(self.drawn), first) or str(shape)
        self.seen[key] = self.seen.get(key, 0) + 1
        seed_all(derive_seed(self.seed, *key, self.seen[key]))
        self.drawn.append(func(*args, **(kwargs or {})))
        return self.drawn[-1]


def _storage(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else None


def _state(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.named_parameters()) | dict(module.named_buffers())


def _filled_units(factory: Factory) -> list[str | None]:
    """Build a module once to learn which unit each random operation of its constructor fills."""
    with isolated_randomness(seed=0), _KeyedRandomness(0, lambda *_: None) as recorder:
        fresh = factory()
    names = {_storage(unit): name for name, unit in _state(fresh).items()}
    return [names.get(_storage(value)) for value in recorder.drawn]


def _rebuild(factory: Factory) -> Initialiser:
    """Build a fresh module with the user's own code and copy its values; buffers it lacks stay as they are."""
    names = _filled_units(factory)

    def filled(number: int, _: Any) -> str | None:
        return names[number] if number < len(names) else None

    def initialise(module: nn.Module, seed: int) -> None:
        seed_all(seed)
        with _KeyedRandomness(seed, filled):
            fresh = factory()
        values, weights = _state(fresh), dict(module.named_parameters())
        for name, unit in _state(module).items():
            value = values.get(name)
            if value is not None and value.shape == unit.shape:
                unit.data.copy_(value.data)
            elif name in weights:
                raise PGEError(
                    f"Expected the factory's module to hold '{name}' of shape {list(unit.shape)}, but got "
                    f"{'nothing' if value is None else list(value.shape)}. Give a factory of the same module."
                )

    return initialise


def _reset(part: nn.Module) -> None:
    """Call a module's own reset, whichever name it has."""
    reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
    if callable(reset):
        reset()


@torch.no_grad()
def _sweep(module: nn.Module, seed: int) -> None:
    """Reset all modules, children before parents as constructors do, each unit under a seed of its own.

    Raises:
        PGEError: If no reset touches some unit.
    """
    units = dict(module.named_parameters())
    owners = {_storage(unit): name for name, unit in units.items()}

    def apply(name: str, reset: Callable[[], Any]) -> None:
        key = derive_seed(seed, name)
        seed_all(key)
        with _KeyedRandomness(key, lambda _, value: owners.get(_storage(value))):
            reset()

    for unit in units.values():
        unit.fill_(torch.nan)
    for name, part in reversed([*module.named_modules()]):
        apply(name, partial(_reset, part))
    for outer, model in module.named_modules():
        if callable(getattr(model, "_init_weights", None)) and hasattr(model, "config"):
            for name, part in reversed([*model.named_modules(prefix=outer)]):
                apply(name, partial(model._init_weights, part))
    if left := [name for name, unit in units.items() if unit.isnan().any()]:
        raise PGEError(
            f"Expected every weight unit to be re-initialised, but nothing resets {', '.join(left)}. Give a `factory` "
            "that builds a fresh module, call `save_hyperparameters()` in the module, or define `reset_parameters()` "
            "in the part that owns them."
        )


def _from_hyperparameters(module: nn.Module) -> Factory | None:
    """The module's own constructor with its saved hyper-parameters, where these suffice and hold no module."""
    saved = dict(module.hparams) if isinstance(module, pl.LightningModule) else {}
    if not saved or any(isinstance(value, nn.Module) for value in tree_leaves(saved)):
        return None
    accepted = inspect.signature(type(module)).parameters
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in accepted.values()):
        saved = {name: value for name, value in saved.items() if name in accepted}
    factory: Factory = partial(type(module), **saved)
    try:
        with isolated_randomness():
            fresh = factory()
    except Exception:  # a constructor that needs more than was saved: the sweep comes next
        return None
    same = [(n, u.shape) for n, u in fresh.named_parameters()] == [(n, u.shape) for n, u in module.named_parameters()]
    return factory if same else None


def make_initialiser(module: nn.Module, factory: Factory | None = None) -> Initialiser:
    """Choose how a module is re-initialised.

    In this order: the user's factory; the constructor with saved hyper-parameters; a sweep over the modules'
    ``reset_parameters``, with the ``_init_weights`` of Hugging Face models above it.

    Args:
        module: The module to be re-initialised, as the user has it.
        factory: Builds a fresh module of the same kind.

    Returns:
        A function of a module of that kind and a seed, which re-initialises the module in place.
    """
    build = factory or _from_hyperparameters(module)
    return _sweep if build is None else _rebuild(build)


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
        Unit to a copy of its initial values, ``[*shape]``.

    Raises:
        PGEError: If a unit is left uncovered.
    """
    parameters = dict(module.named_parameters())
    initialise(module, head_seed)
    head = {name: unit.data.clone() for name, unit in parameters.items() if name not in set(shared)}
    initialise(module, seed)
    for name, value in head.items():
        parameters[name].data.copy_(value)
    return {name: parameters[name].data.clone() for name in shared}


def hash_start(start: dict[str, Tensor]) -> dict[str, str]:
    """Unit to a hash of its initial values, 16 hexadecimal digits."""
    return {
        name: hashlib.blake2b(value.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
        for name, value in start.items()
    }
