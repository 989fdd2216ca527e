"""Isolation: whatever the gradient phase touches is a copy, or is put back."""

import copy
import hashlib
import json
import random
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pge_lightning.reach import reachable

__all__ = ["borrowed", "derive_seed", "isolated_randomness", "seed_all", "seed_torch", "undone"]

_ROLES = ("sampler", "_sampler", "batch_sampler", "dataset", "datasets", "collate_fn")


def derive_seed(*parts: str | int) -> int:
    """Mix the parts into one seed, the same on every machine.

    Args:
        parts: Whatever tells this seed from others.

    Returns:
        A number in [0, 2**63).

    >>> derive_seed(0, "encoder.conv1") == derive_seed(0, "encoder.conv1")
    True
    """
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _accelerator() -> Any | None:
    """The accelerator's module (``torch.cuda``, ``torch.mps``, ``torch.xpu``), if it is in use."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
        return torch.cuda
    others = [getattr(torch, name) for name in ("mps", "xpu") if hasattr(torch, name)]
    return next((accelerator for accelerator in others if accelerator.is_available()), None)


def seed_torch(seed: int) -> None:
    """Seed PyTorch on the CPU and on a device in use.

    ``torch.manual_seed`` would also bind devices that are not in use yet, and costs a hundred times as much.

    Args:
        seed: A number in [0, 2**63).
    """
    torch.default_generator.manual_seed(seed)
    if (accelerator := _accelerator()) is not None:
        many = hasattr(accelerator, "manual_seed_all")
        (accelerator.manual_seed_all if many else accelerator.manual_seed)(seed)


def seed_all(seed: int) -> None:
    """Seed PyTorch, NumPy's global generator and Python's.

    Args:
        seed: A number in [0, 2**63).
    """
    seed_torch(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@contextmanager
def undone(undo: Callable[[], None]) -> Generator[None]:
    """Undo something on leaving, even if an interruption breaks off the undoing itself.

    Args:
        undo: Puts something back; doing it twice must be as good as once.

    Yields:
        Nothing.
    """
    try:
        try:
            yield
        finally:
            undo()
    finally:  # Ctrl-C may have come in the middle of the first one
        undo()


@contextmanager
def isolated_randomness(seed: int | None = None) -> Generator[None]:
    """Put all global random states back on leaving, also after an exception; seed them on entering if asked.

    Args:
        seed: For :func:`seed_all`; ``None`` leaves the states as they are.

    Yields:
        Nothing.
    """
    accelerator = _accelerator()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    if accelerator is not None:
        many = hasattr(accelerator, "get_rng_state_all")
        on_device = accelerator.get_rng_state_all() if many else accelerator.get_rng_state()

    def put_back() -> None:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if accelerator is not None:
            (accelerator.set_rng_state_all if many else accelerator.set_rng_state)(on_device)

    with undone(put_back):
        if seed is not None:
            seed_all(seed)
        yield


def _generator_state(value: Any) -> Any | None:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return copy.deepcopy(value.bit_generator.state)
    return value.get_state() if isinstance(value, np.random.RandomState) else None


def _restore_generator(value: Any, state: Any) -> None:
    if isinstance(value, np.random.Generator):
        value.bit_generator.state = state
    elif isinstance(value, random.Random):
        value.setstate(state)
    else:
        value.set_state(state)


def _owners(found: list[Any]) -> list[Any]:
    """Loaders, samplers, data sets and collate functions: what a pass over a loader may leave a mark on."""
    roles = [vars(part).get(role) for part in found if hasattr(part, "__dict__") for role in _ROLES]
    named = {id(value) for role in roles for value in (role if isinstance(role, (list, tuple)) else [role])}
    kinds = (DataLoader, Dataset, Sampler)
    owners = [found[0], *(part for part in found[1:] if isinstance(part, kinds) or id(part) in named)]
    return [owner for owner in owners if hasattr(owner, "__dict__") and not isinstance(owner, type)]


def _put_back(owner: Any, attributes: dict[str, Any]) -> None:
    """Undo changes of an object's attributes, and touch nothing else: another thread may be reading."""
    now = vars(owner)
    for name in now.keys() - attributes.keys():
        del now[name]
    now.update({name: value for name, value in attributes.items() if name not in now or now[name] is not value})


@contextmanager
def borrowed(loader: Any) -> Generator[None]:
    """Read from loaders, their samplers and data sets, and leave their attributes and generators as they were.

    The iterators of persistent workers are laid aside, so that reading starts others.

    Args:
        loader: A ``DataLoader``, any iterable of batches, or whatever holds some of them.

    Yields:
        Nothing; everything is put back on leaving.
    """
    found = reachable(loader)
    owners = [(owner, dict(vars(owner))) for owner in _owners(found)]
    generators = [(part, state) for part in found if (state := _generator_state(part)) is not None]

    def put_back() -> None:
        for owner, attributes in owners:
            _put_back(owner, attributes)
        for value, state in generators:
            _restore_generator(value, state)

    with undone(put_back):
        for owner, _ in owners:
            if isinstance(owner, DataLoader):
                owner._iterator = None
        yield
