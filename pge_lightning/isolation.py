"""Isolation: whatever the gradient phase touches is a copy, or is put back."""

import copy
import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn

from pge_lightning.errors import PGEError

__all__ = ["borrowed", "derive_seed", "isolated_copy", "isolated_randomness", "seed_all"]


def derive_seed(*parts: str | int) -> int:
    """Mix the parts into one seed in [0, 2**63), the same on every machine.

    >>> derive_seed(0, "encoder.conv1") == derive_seed(0, "encoder.conv1")
    True
    """
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_all(seed: int) -> None:
    """Seed PyTorch on all its devices, NumPy's global generator and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _accelerator() -> Any | None:
    """The accelerator's module (``torch.cuda``, ``torch.mps``, ``torch.xpu``), if it has drawn random numbers."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda
    return next((getattr(torch, n) for n in ("mps", "xpu") if hasattr(torch, n) and getattr(torch, n).is_available()), None)


@contextmanager
def isolated_randomness(seed: int | None = None) -> Iterator[None]:
    """Put all global random states back on leaving, also after an exception; seed them on entering if asked."""
    accelerator = _accelerator()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    if accelerator is not None:
        many = hasattr(accelerator, "get_rng_state_all")
        on_device = accelerator.get_rng_state_all() if many else accelerator.get_rng_state()
    try:
        if seed is not None:
            seed_all(seed)
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if accelerator is not None:
            (accelerator.set_rng_state_all if many else accelerator.set_rng_state)(on_device)


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


def _reachable(root: Any, depth: int = 6) -> Iterator[Any]:
    """The loader with what it reads through: samplers, collate functions, and wrapped data sets."""
    if root is None or depth == 0 or not hasattr(root, "__dict__"):
        return
    yield root
    for name in ("sampler", "batch_sampler", "dataset", "collate_fn"):
        yield from _reachable(getattr(root, name, None), depth - 1)
    for part in getattr(root, "datasets", None) or ():
        yield from _reachable(part, depth - 1)


@contextmanager
def borrowed(loader: Any) -> Iterator[None]:
    """Read from a loader, its samplers and data sets, and leave their attributes and generators as they were.

    A persistent workers' iterator is laid aside, so that reading starts one of its own.
    """
    owners = {id(owner): owner for owner in _reachable(loader)}
    attributes = {key: dict(vars(owner)) for key, owner in owners.items()}
    generators = [
        (value, state)
        for values in attributes.values()
        for value in values.values()
        if (state := _generator_state(value)) is not None
    ]
    if hasattr(loader, "_iterator"):
        loader._iterator = None
    try:
        yield
    finally:
        for key, owner in owners.items():
            vars(owner).clear()
            vars(owner).update(attributes[key])
        for value, state in generators:
            _restore_generator(value, state)


def _ignore(*_: Any, **__: Any) -> None:
    """Stands where a copy of a module would log."""


def isolated_copy(module: nn.Module) -> nn.Module:
    """A deep copy in float32 that logs nothing and is in training mode, unless single submodules are set otherwise.

    Args:
        module: The user's module; it is not touched.

    Returns:
        The copy, on the CPU.

    Raises:
        PGEError: If the module cannot be copied.
    """
    try:
        clone = copy.deepcopy(module)
    except Exception as error:
        raise PGEError(
            f"Expected a module that `copy.deepcopy` can copy, but got {type(module).__name__}: {error}. "
            "Replace what cannot be copied (the old `torch.nn.utils.weight_norm` has a successor in "
            "`torch.nn.utils.parametrizations`)."
        ) from error
    clone = clone.to(device="cpu", dtype=torch.float32)
    if not clone.training:
        clone.train()
    for part in clone.modules():
        if isinstance(part, pl.LightningModule):
            vars(part).update(log=_ignore, log_dict=_ignore)
    return clone
