"""Which checkpoint should fine-tuning start from: transferability from principal gradients.

LightningModule + training batches -> restart -> collect -> signature -> library -> estimators -> rank -> select
"""

from pge_lightning.callbacks import FineTuningRecordCallback, PrincipalGradientCallback, SourceSelectionCallback
from pge_lightning.collect import collect_signature
from pge_lightning.errors import ArtifactError, IncomparableError, PGEError
from pge_lightning.gap import Gap, compare
from pge_lightning.library import Library
from pge_lightning.load import load_encoder
from pge_lightning.metrics import PrincipalGradientGap
from pge_lightning.probe import PROBES, Probe, Walk
from pge_lightning.ranking import Ranking
from pge_lightning.record import Record
from pge_lightning.records import Records
from pge_lightning.restart import register_reset
from pge_lightning.select import Selection, SourceSelector
from pge_lightning.signature import Signature

__all__ = [
    "PROBES",
    "ArtifactError",
    "FineTuningRecordCallback",
    "Gap",
    "IncomparableError",
    "Library",
    "PGEError",
    "PrincipalGradientCallback",
    "PrincipalGradientGap",
    "Probe",
    "Ranking",
    "Record",
    "Records",
    "Selection",
    "Signature",
    "SourceSelectionCallback",
    "SourceSelector",
    "Walk",
    "collect_signature",
    "compare",
    "load_encoder",
    "register_reset",
]
