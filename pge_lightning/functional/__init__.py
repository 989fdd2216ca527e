"""Formulas as pure functions of tensors."""

from pge_lightning.functional.gap import kernelwise_gap, layerwise_gap, principal_gradient_gap, published_gap, unit_gap

__all__ = ["kernelwise_gap", "layerwise_gap", "principal_gradient_gap", "published_gap", "unit_gap"]
