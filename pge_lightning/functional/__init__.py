"""Formulas as pure functions."""

from pge_lightning.functional.gap import (
    gaps_by_unit,
    kernelwise_gap,
    layerwise_gap,
    principal_gradient_gap,
    published_gap,
    spread_weights,
    unit_gap,
)

__all__ = [
    "gaps_by_unit",
    "kernelwise_gap",
    "layerwise_gap",
    "principal_gradient_gap",
    "published_gap",
    "spread_weights",
    "unit_gap",
]
