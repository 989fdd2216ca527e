"""Restart: seeded re-initialisation of every weight unit, equal for all data sets where the encoder is equal."""

import hashlib
from collections.abc import Callable
from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pge_lightning.errors import PGEError
from pge_lightning.isolation import derive_seed, isolated_randomness, seed_all

__all__ = ["Factory", "Initialiser", "hash_start", "make_initialiser", "restart"]

Factory: TypeAlias = Callable[[], nn.Module]
Initialiser: TypeAlias = Callable[[nn.Module, int], None]


class _KeyedRandomness(TorchDispatchMode):
    """Seed each random operation by its kind, its shape and how often both came: the order of construction is mute."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.seen = seed, dict[tuple[str, str], int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            shape = tuple(args[0].shape) if isinstance(args[0], Tensor) else args[0]
            key = str(func), str(shape)
            self.seen[key] = self.seen.get(key, 0) + 1
            seed_all(derive_seed(self.seed, *key, self.seen[key]))
        return func(*args, **(kwargs or {}))


def _rebuild(factory: Factory) -> Initialiser:
    """Build a fresh module with the user's own code and copy its values."""

    def initialise(module: nn.Module, seed: int) -> None:
        seed_all(seed)
        with _KeyedRandomness(seed):
            fresh = factory()
        values = dict(fresh.named_parameters()) | dict(fresh.named_buffers())
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        for name, unit in own.items():
            value = values.get(name)
            if value is None or value.shape != unit.shape:
                raise PGEError(
                    f"Expected the factory's module to hold '{name}' of shape {list(unit.shape)}, but got "
                    f"{'nothing' if value is None else list(value.shape)}. Give a factory of the same module."
                )
            unit.data.copy_(value.data)

    return initialise


def _reset(part: nn.Module) -> None:
    """Call a module's own reset, whichever name it has."""
    reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
    if callable(reset):
        reset()


def _sweep(module: nn.Module, seed: int) -> None:
    """Reset each module under a seed of its own; what no reset touches is an error.

    Parents come before their children, whose own seeds then decide. A multi-head attention sets its children's
    biases, so that it comes once more afterwards.
    """
    units = dict(module.named_parameters())
    for unit in units.values():
        unit.data.fill_(torch.nan)
    attention = [item for item in module.named_modules() if isinstance(item[1], nn.MultiheadAttention)]
    for name, part in [*module.named_modules(), *attention]:
        seed_all(derive_seed(seed, name))
        _reset(part)
    for outer, model in module.named_modules():
        if callable(getattr(model, "_init_weights", None)) and hasattr(model, "config"):
            for name, part in model.named_modules():
                seed_all(derive_seed(seed, f"{outer}.{name}"))
                model._init_weights(part)
    if left := [name for name, unit in units.items() if unit.isnan().any()]:
        raise PGEError(
            f"Expected every weight unit to be re-initialised, but nothing resets {', '.join(left)}. Give a `factory` "
            "that builds a fresh module, call `save_hyperparameters()` in the module, or define `reset_parameters()` "
            "in the part that owns them."
        )


def _from_hyperparameters(module: nn.Module) -> Factory | None:
    """The module's own constructor with its saved hyper-parameters, where these suffice and hold no module."""
    saved = dict(module.hparams) if isinstance(module, pl.LightningModule) else {}
    if not saved or any(isinstance(value, nn.Module) for value in saved.values()):
        return None
    factory: Factory = lambda: type(module)(**saved)  # noqa: E731 (the tried call and the kept one are the same)
    try:
        with isolated_randomness():
            fresh = factory()
    except Exception:
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
    module: nn.Module, units: list[str], initialise: Initialiser, seed: int, head_seed: int
) -> dict[str, Tensor]:
    """Re-initialise a module in place: the encoder from one seed, everything else from another.

    Args:
        module: A copy, on the CPU.
        units: Names of the encoder's units.
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
    head = {name: unit.data.clone() for name, unit in parameters.items() if name not in set(units)}
    initialise(module, seed)
    for name, value in head.items():
        parameters[name].data.copy_(value)
    return {name: parameters[name].data.clone() for name in units}


def hash_start(start: dict[str, Tensor]) -> dict[str, str]:
    """Unit to a hash of its initial values, 16 hexadecimal digits."""
    return {
        name: hashlib.blake2b(value.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
        for name, value in start.items()
    }
