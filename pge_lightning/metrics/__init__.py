"""Formulas as torchmetrics classes, which hold state and compute over all processes."""

from pge_lightning.metrics.gap import PrincipalGradientGap

__all__ = ["PrincipalGradientGap"]
