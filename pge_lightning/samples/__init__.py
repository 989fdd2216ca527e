"""Samples: any loader, stream or combination of them as a pool of samples, read without moving it."""

from pge_lightning.samples.pool import SamplePool
from pge_lightning.samples.read import sample_pool

__all__ = ["SamplePool", "sample_pool"]
