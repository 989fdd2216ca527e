"""Borrow: read from loaders, and leave them, their samplers and their data sets as they were."""

import copy
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pge_lightning.isolation.reach import reachable
from pge_lightning.isolation.undo import undone

__all__ = ["borrowed"]

_ROLES = ("sampler", "_sampler", "batch_sampler", "dataset", "datasets", "collate_fn")


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
