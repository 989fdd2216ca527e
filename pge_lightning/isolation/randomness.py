"""Randomness: seeds that are the same everywhere, and global random states that are put back."""

import hashlib
import json
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pge_lightning.isolation.undo import undone

__all__ = ["derive_seed", "isolated_randomness", "seed_all", "seed_torch"]


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
