"""Restart: every weight unit drawn anew from a seed, equal for all data sets where the encoder is equal."""

from pge_lightning.restart.initialiser import Factory, Initialiser, hash_start, make_initialiser, restart
from pge_lightning.restart.resets import register_reset

__all__ = ["Factory", "Initialiser", "hash_start", "make_initialiser", "register_reset", "restart"]
