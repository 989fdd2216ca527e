"""Batches: taking apart what comes in batches only, so that samples can be drawn from it."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_structure

from pge_lightning.errors import PGEError
from pge_lightning.samples.pool import SamplePool

__all__ = ["BatchColumns"]

Column: TypeAlias = Any  # one entry per sample: a tensor, an array, or a list or tuple of strings and numbers

_PLAIN = (str, bytes, bool, int, float, type(None))


class BatchColumns(SamplePool):
    """Holds the samples of batches that came one after another, in the columns that the batches consist of."""

    def __init__(self) -> None:
        self.columns: list[Column] = []
        self.spec = tree_structure(())

    def read(self, batches: Iterable[Any], most: int | None) -> int:
        """Take batches until there are enough samples.

        Args:
            batches: Nested dictionaries, lists and tuples of columns: tensors and arrays ``[samples, ...]``, lists of
                strings or numbers.
            most: How many samples are enough; ``None`` takes all.

        Returns:
            The number of samples.

        Raises:
            PGEError: If the batches cannot be taken apart and put together again.
        """
        parts: list[list[Column]] = []
        layout = None
        size = 0
        for batch in batches:
            columns, spec = tree_flatten(batch, is_leaf=_is_column)
            lengths = {len(column) if _is_column(column) else None for column in columns}
            if len(lengths) != 1 or None in lengths:
                raise PGEError(_unfit(batch))
            rest = spec, [_rest(column) for column in columns]
            if parts and rest != layout:
                raise PGEError(_unfit(batch, self.spec.unflatten(parts[0])))
            layout = rest
            parts.append([column.detach() if isinstance(column, Tensor) else column for column in columns])
            self.spec = spec
            size += len(columns[0])
            if most is not None and size >= most:
                break
        self.columns = [_joined(column) for column in zip(*parts, strict=True)]
        return len(self)

    def __len__(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def batch(self, indices: Sequence[int]) -> Any:
        """The samples of these indices, in batches like those that came."""
        return self.spec.unflatten([_chosen(column, indices) for column in self.columns])


def _is_column(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim > 0
    return type(value) in (list, tuple) and bool(value) and all(isinstance(part, _PLAIN) for part in value)


def _rest(column: Column) -> Any:
    """What two columns must share to be joined."""
    return type(column), column.shape[1:] if isinstance(column, (Tensor, np.ndarray)) else None


def _joined(columns: Sequence[Column]) -> Column:
    if isinstance(columns[0], Tensor):
        return torch.cat(list(columns))
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    return type(columns[0])(chain.from_iterable(columns))


def _chosen(column: Column, indices: Sequence[int]) -> Column:
    if isinstance(column, (Tensor, np.ndarray)):
        return column[torch.as_tensor(indices) if isinstance(column, Tensor) else np.asarray(indices)]
    return type(column)(column[i] for i in indices)


def _unfit(batch: Any, first: Any = None) -> str:
    """What to say of a batch that cannot be taken apart, or that differs from the first one."""

    def shapes(tree: Any) -> str:
        return str(tree_map(lambda x: tuple(x.shape) if hasattr(x, "shape") else type(x).__name__, tree))

    after = "" if first is None else f" after {shapes(first)}"
    return (
        "Expected batches of tensors and lists that share their first dimension, and agree in all others from batch to "
        f"batch, but got {shapes(batch)}{after}. Pad them to one size, or give a DataLoader whose data set gives "
        "single samples, which may be of any kind."
    )
