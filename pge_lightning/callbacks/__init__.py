"""Shells that Lightning calls; the engine lies beside them."""

from pge_lightning.callbacks.principal_gradient import PrincipalGradientCallback
from pge_lightning.callbacks.record import FineTuningRecordCallback
from pge_lightning.callbacks.source_selection import SourceSelectionCallback

__all__ = ["FineTuningRecordCallback", "PrincipalGradientCallback", "SourceSelectionCallback"]
