"""Isolation: whatever the gradient phase touches is a copy, or is put back."""

from pge_lightning.isolation.borrow import borrowed
from pge_lightning.isolation.clone import isolated_copy
from pge_lightning.isolation.randomness import derive_seed, isolated_randomness, seed_all, seed_torch
from pge_lightning.isolation.undo import undone
from pge_lightning.isolation.unwrap import plain

__all__ = [
    "borrowed",
    "derive_seed",
    "isolated_copy",
    "isolated_randomness",
    "plain",
    "seed_all",
    "seed_torch",
    "undone",
]
