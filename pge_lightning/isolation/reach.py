"""Reach: what an object holds, itself or through what it holds."""

from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch import Tensor, nn
from torch.utils.data.dataloader import _BaseDataLoaderIter

__all__ = ["parts_of", "reachable"]

_PLAIN = (str, bytes, int, float, complex, type(None))
# What holds no part of a loader, and what goes on by itself meanwhile.
_CLOSED = (Tensor, np.ndarray, nn.Module, type, ModuleType, pl.Trainer, _BaseDataLoaderIter)
_MOST = 256
_EMPTY = CellType()


def reachable(root: Any, depth: int = 8) -> list[Any]:
    """Everything that an object holds: in attributes, short containers, partials, bound methods and closures.

    Args:
        root: Where to search.
        depth: How many levels to go down.

    Returns:
        The object itself and the others, nearest first, without numbers and strings. Tensors, modules and the Trainer
        are among them, but are not searched; nor are containers of more than 256 parts, which are data.

    >>> from torch import Generator
    >>> generator = Generator()
    >>> generator in reachable({"transforms": [partial(print, generator)]})
    True
    """
    found, level = {id(root): root}, [root]
    for _ in range(depth):
        below = {id(part): part for held in level for _, part in parts_of(held)}
        level = [part for key, part in below.items() if key not in found]
        found.update((id(part), part) for part in level)
    return list(found.values())


def parts_of(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds directly.

    Args:
        value: Any object.

    Yields:
        How to write the access to a part, as in ``".reader"``, and the part; no numbers and strings.
    """
    if isinstance(value, (_PLAIN, _CLOSED)):
        return
    attributes = getattr(value, "__dict__", {}).items()
    named = [*((f".{name}", part) for name, part in attributes), *_slots(value), *_items(value), *_bound(value)]
    yield from ((name, part) for name, part in named if not isinstance(part, _PLAIN))


def _slots(value: Any) -> Iterator[tuple[str, Any]]:
    for kind in type(value).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield f".{name}", getattr(value, name)


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    """The parts of a short container."""
    if not isinstance(value, (dict, list, tuple, set, frozenset, deque)) or len(value) > _MOST:
        return ()
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return ((f"[{key!r}]", part) for key, part in pairs)


def _bound(value: Any) -> Iterator[tuple[str, Any]]:
    """What functions carry with them."""
    if isinstance(value, partial):
        yield from ((".func", value.func), (".args", value.args), (".keywords", value.keywords))
    if isinstance(value, MethodType):
        yield from ((".__self__", value.__self__), (".__func__", value.__func__))
    if isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        yield from ((f"'s {name}", cell.cell_contents) for name, cell in cells if cell != _EMPTY)
