"""Content: a hash of what a batch holds, the same wherever the same data are read."""

import hashlib
import io
import pickle  # ruff: ignore[suspicious-pickle-import] (written for its hash, never read)
from collections.abc import Mapping, Set
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["content_hash"]


def content_hash(value: Any) -> str:
    """Hash a collection of any types by its content: no addresses, no order of sets or mappings.

    Args:
        value: Tensors and arrays count by their values; other objects by their type and what they would pickle. What
            cannot be pickled counts by its type alone.

    Returns:
        16 hexadecimal digits, the same in every process.

    >>> content_hash([torch.ones(2), {"a", "b"}]) == content_hash([torch.ones(2), {"b", "a"}])
    True
    """
    return _digest(_plain(value, {})).hex()


class _Writer(pickle.Pickler):
    """Writes tensors as their values."""

    def persistent_id(self, value: Any) -> bytes | None:
        if not isinstance(value, Tensor):
            return None
        resolved = value.detach().cpu().resolve_conj().resolve_neg()
        return resolved.flatten().view(torch.uint8).numpy().tobytes()


def _digest(plain: Any) -> bytes:
    written = io.BytesIO()
    _Writer(written, protocol=4).dump(plain)
    return hashlib.blake2b(written.getvalue(), digest_size=8).digest()


def _plain(value: Any, known: dict[int, Any]) -> Any:
    """The same content as new lists and tuples of numbers and dense tensors.

    Pickle writes an object that comes a second time in another way, so that none may be there twice.

    Args:
        value: Any object.
        known: Identity to each object met before, which keeps it from being another's, and what stands for it.

    Returns:
        Lists, tuples, numbers and tensors; whatever is none of these is a number, made of its type and its parts.
    """
    if _is_dense(value) or type(value) in (bool, int, float, type(None)):
        return value
    if type(value) in (str, bytes):
        raw = value if isinstance(value, bytes) else b"text " + value.encode(errors="surrogatepass")
        return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")
    if id(value) in known:
        return known[id(value)][1]
    known[id(value)] = value, -1  # stands for the object within itself
    if type(value) in (list, tuple):
        plain = type(value)([_plain(part, known) for part in value])
        del known[id(value)]
        return plain
    number = int.from_bytes(_digest([_plain(part, known) for part in _taken_apart(value, known)]), "big")
    known[id(value)] = value, number
    return number


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout is torch.strided and not (value.is_nested or value.is_quantized)


def _taken_apart(value: Any, known: dict[int, Any]) -> list[Any]:
    """The name of an object's type, and its parts."""
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return [f"{value.__module__}.{value.__qualname__}"]
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Tensor):
        return [name, *_dense(value)]
    if isinstance(value, (np.ndarray, np.generic)):
        content = value.ravel().tolist() if value.dtype == object else value.tobytes()
        return [name, value.dtype.str, tuple(value.shape), content]
    if isinstance(value, Set):
        return [name, *sorted(_digest(_plain(part, known)) for part in value)]
    if isinstance(value, Mapping):
        return [name, *sorted(_digest(_plain(item, known)) for item in value.items())]
    if isinstance(value, (list, tuple)):
        return [name, *value]
    return [name, *_reduced(value)]


def _dense(value: Tensor) -> list[Any]:
    """The dense tensors that make up another one."""
    if value.is_nested:
        return list(value.unbind())
    if value.is_quantized:
        return [value.int_repr(), value.dequantize()]
    sparse = value.to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped
    return [tuple(sparse.shape), sparse.indices(), sparse.values()]


def _reduced(value: Any) -> list[Any]:
    """What an object would be made from; nothing if it cannot be."""
    try:
        reduced = value.__reduce_ex__(4)
    except TypeError:
        return []
    if isinstance(reduced, str):
        return [reduced]
    make, args, state, listed, mapped = (*reduced, None, None, None)[:5]
    return [make, args, state, list(listed or ()), list(mapped or ())]
