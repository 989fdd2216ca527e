"""Formulas as pure functions of tensors."""

from pge_lightning.functional.gap import layerwise_gap, principal_gradient_gap, published_gap, unit_gap

__all__ = ["layerwise_gap", "principal_gradient_gap", "published_gap", "unit_gap"]
