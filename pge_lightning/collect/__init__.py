"""Collect: warm up an isolated copy from every restart, and keep the mean direction it took."""

from pge_lightning.collect.collector import Collector, collect_signature
from pge_lightning.collect.loss import LossFn

__all__ = ["Collector", "LossFn", "collect_signature"]
