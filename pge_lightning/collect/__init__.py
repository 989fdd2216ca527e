"""Collect: warm up an isolated copy from every restart, and keep the mean direction it took."""

from pge_lightning.collect.collector import Collector
from pge_lightning.collect.loss import LossFn
from pge_lightning.collect.single import collect_signature

__all__ = ["Collector", "LossFn", "collect_signature"]
