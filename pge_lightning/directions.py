"""Directions of a signature: all that the kernelwise and layerwise gaps take of it, at less than half its size."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from torch import Tensor

from pge_lightning.functional.directions import directions
from pge_lightning.functional.stack import UnitKind
from pge_lightning.signature import Signature

__all__ = ["Directions"]


@dataclass(frozen=True)
class Directions:
    """A signature's principal gradients without their lengths, in the units that one formula looks at.

    Args:
        units: Unit to ``[restarts, entries]``, float32 (:func:`~pge_lightning.functional.directions.directions`).
        digest: Of everything that two signatures must share to be compared, and of which units these are: where it is
            equal, :meth:`Signature.check_comparable` has nothing to refuse. Where it differs, they may still compare.
    """

    units: Mapping[str, Tensor]
    digest: str

    @classmethod
    def of(cls, signature: Signature, kind: UnitKind) -> "Directions":
        """Take them from a signature.

        Args:
            signature: The signature.
            kind: The formula.

        Returns:
            Its directions.

        Raises:
            ValueError: If a value is not finite, or units differ in their number of restarts.
        """
        units = directions(signature.units, kind)
        rows = {name: len(stack) for name, stack in signature.units.items()}
        shared = {**signature.fingerprint, "rows": rows, "units": [*units], "kind": kind}
        return cls(units, sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest())
