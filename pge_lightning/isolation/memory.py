"""Memory: what has served its purpose is given back at once, so that the peak is what is needed and no more."""

import ctypes
import sys
from itertools import chain

import torch
from torch import nn

__all__ = ["give_back", "release"]


def release(clone: nn.Module) -> None:
    """Free the memory of a copy now, not when the garbage collector finds out that nobody needs it.

    Args:
        clone: A copy, of no use any more.
    """
    for tensor in chain(clone.parameters(), clone.buffers()):
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        tensor.grad = None


def give_back() -> None:
    """Return freed memory to the system, where the C library is glibc: it keeps what lies below anything in use."""
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
