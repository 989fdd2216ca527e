"""Directions of a signature: all that the kernelwise and layerwise gaps take of it, at less than half its size."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

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
        digests: For every number of first restarts, of everything that two signatures must share to be compared in
            them, and of which units these are: where it is equal, :meth:`Signature.check_comparable` has nothing to
            refuse. Where it differs, they may still compare.
    """

    units: Mapping[str, Tensor]
    digests: tuple[str, ...]

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
        shared = {**signature.fingerprint, "units": [*units], "kind": kind}
        shared["recipe"] = {key: value for key, value in shared["recipe"].items() if key != "restarts"}
        starts, digest, digests = shared.pop("starts"), sha256(_plain(shared)), []
        for row in range(len(next(iter(units.values())))):
            digest.update(_plain({name: hashes[row : row + 1] for name, hashes in starts.items()}))
            digests.append(digest.hexdigest())
        return cls(units, tuple(digests))

    def shared(self, other: "Directions") -> int:
        """In how many of their first restarts they compare; 0 where only the signatures themselves can tell."""
        count = min(len(self.digests), len(other.digests))
        return count if count and self.digests[count - 1] == other.digests[count - 1] else 0

    def first(self, count: int) -> dict[str, Tensor]:
        """The units of the first restarts alone."""
        return {name: rows[:count] for name, rows in self.units.items()}


def _plain(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
