"""Streams: reading what can be read only once, or only in order, without taking it away from training."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from types import FunctionType, ModuleType
from typing import Any

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import Dataset, IterableDataset

from pge_lightning.errors import PGEError
from pge_lightning.isolation import undone
from pge_lightning.isolation.reach import parts_of, reachable
from pge_lightning.samples.pool import SamplePool, collated

__all__ = ["SampleList", "spared"]

_PLAIN = (str, bytes, int, float, type(None))
_SHARED = (ModuleType, pl.Trainer, type(threading.Lock()), type(threading.RLock()))


class SampleList(SamplePool):
    """Holds single samples of any kind.

    Args:
        collate: Makes a batch of some of them.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate, self.samples = collate, list[Any]()

    def read(self, samples: Iterable[Any], most: int | None) -> int:
        """Take samples until there are enough.

        Args:
            samples: Samples of any kind.
            most: How many are enough; ``None`` takes all.

        Returns:
            The number of samples.
        """
        self.samples = list(islice(samples, most))
        return len(self)

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Sequence[int]) -> Any:
        """The samples of these indices, collated as the loader collates them."""
        return collated([self.samples[i] for i in indices], self.collate)


def spared(stream: Any, later: ExitStack) -> Any:
    """Something to read in a stream's place, so that the stream itself goes on as if nobody had read.

    That is a deep copy, which holds its own iterators, positions and generators at any depth. Map-style data sets
    that the stream reads from are not copied, nor is what may only be read: their samples have numbers.

    Args:
        stream: A data set or other iterable.
        later: If the stream has no copy but a state, that is loaded again when this is closed.

    Returns:
        The copy; the stream itself, if it has a state alone.

    Raises:
        PGEError: If the stream has neither; nothing has been read then.
    """
    found = reachable(stream)
    shared = {id(part): part for part in found if _is_shared(part)}
    cause = _shared_iterator(found)
    if cause is None:
        try:
            return copy.deepcopy(stream, dict(shared))
        except Exception:  # users' classes raise errors of their own kinds
            cause = _without_copy(stream, shared)
    if hasattr(stream, "state_dict") and hasattr(stream, "load_state_dict"):
        later.enter_context(undone(_reloading(stream)))
        return stream
    raise PGEError(
        f"Expected a stream that can be copied, because training would miss what is read of it, but "
        f"`{type(stream).__name__}{cause[0]}` is a {type(cause[1]).__name__}, which has no copy. Make it anew in "
        f"`__iter__`, or give {type(stream).__name__} a `state_dict` and `load_state_dict`, or collect from other "
        "batches before `fit`, with `collect_signature` or `SourceSelector`."
    )


def _is_shared(part: Any) -> bool:
    if isinstance(part, np.ndarray):
        return not part.flags.writeable
    return isinstance(part, _SHARED) or (isinstance(part, Dataset) and not isinstance(part, IterableDataset))


def _shared_iterator(found: list[Any]) -> tuple[str, Any] | None:
    """An iterator that a copy would share, because functions are not copied with what they enclose."""
    enclosed = (
        (f", {function.__name__}{name}", part)
        for function in found
        if isinstance(function, FunctionType)
        for name, part in parts_of(function)
    )
    return next(((path, part) for path, part in enclosed if isinstance(part, Iterator)), None)


def _without_copy(stream: Any, shared: dict[int, Any]) -> tuple[str, Any]:
    """The nearest part without parts of its own that has no copy: how to write the access to it, and the part."""
    level, seen = [("", stream)], set(shared)
    while level:
        level = [(path, part) for path, part in level if id(part) not in seen]
        seen |= {id(part) for _, part in level}
        below = [[(path + name, held) for name, held in parts_of(part)] for path, part in level]
        for (path, part), held in zip(level, below, strict=True):
            if not held and not _has_copy(part):
                return path, part
        level = [each for held in below for each in held]
    return "", stream


def _has_copy(part: Any) -> bool:
    try:
        copy.deepcopy(part)
    except Exception:  # as above
        return False
    return True


def _reloading(stream: Any) -> Callable[[], None]:
    """Gives a stream back the state that it has now."""
    # Some go to a state at once, others note where their next pass begins: such notes are taken back.
    state, names = copy.deepcopy(stream.state_dict()), set(vars(stream))
    plain = {name: value for name, value in vars(stream).items() if isinstance(value, _PLAIN)}

    def put_back() -> None:
        stream.load_state_dict(copy.deepcopy(state))
        for name in vars(stream).keys() - names:
            delattr(stream, name)
        vars(stream).update(plain)

    return put_back
