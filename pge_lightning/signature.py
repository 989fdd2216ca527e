"""A signature: what one data set does to a freshly started encoder, per restart and weight unit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pge_lightning.errors import IncomparableError
from pge_lightning.probe import Probe

__all__ = ["Signature", "shared_units"]


@dataclass(frozen=True)
class Signature:
    """The principal gradients of one data set under one probe at one sample budget.

    Args:
        units: Weight unit (parameter name inside the module) to its principal gradients, ``[restarts, *shape]``,
            float32 on the CPU. Unpaired probes keep only the mean over restarts, ``[1, *shape]``.
        starts: Weight unit to one hash of its initial values per restart; empty for unpaired probes.
        probe: The probe that collected it.
        budget: Samples drawn per restart.
        restarts: Number of restarts that were run.
        data: Fingerprint of the data set.
        samples: Number of samples the data set held.
        seconds: Wall-clock time the collection took.
        frozen: Name of each parameter of the module that stayed as it was, to a hash of its values.
    """

    units: Mapping[str, Tensor]
    starts: Mapping[str, tuple[str, ...]]
    probe: Probe
    budget: int
    restarts: int
    data: str
    samples: int
    seconds: float = 0.0
    frozen: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What another signature must share with this one to be compared, as plain JSON types."""
        return {
            "recipe": self.probe.recipe,
            "budget": self.budget if self.probe.budgets else None,
            "shapes": {name: list(stack.shape[1:]) for name, stack in self.units.items()},
            "starts": {name: list(hashes) for name, hashes in self.starts.items()},
            "frozen": dict(self.frozen),
        }

    def check_comparable(self, other: "Signature") -> None:
        """Refuse a comparison that would mean nothing.

        Raises:
            IncomparableError: If recipe, budget, units, shapes or starts differ, or the values of what was frozen for
                both; the message names the first difference and the cure. A target may have the walk, the samples and
                the restarts that the source's probe has for targets.
        """
        if not (self._is_target_of(other) or other._is_target_of(self)):
            self._check_recipe(other)
        self._check_units(other)
        self._check_starts(other)

    def _is_target_of(self, source: "Signature") -> bool:
        return source.probe.target is not None and self.probe.recipe == source.probe.of_target.recipe

    def _check_recipe(self, other: "Signature") -> None:
        """The same warm-up, on as many samples."""
        mine, its = self.fingerprint, other.fingerprint
        for key in {**mine["recipe"], **its["recipe"]}:
            value, other_value = (getattr(side.probe, key) for side in (self, other))
            if value != other_value:
                raise IncomparableError(
                    f"Expected the same probe, but `{key}` is {value} on one side and {other_value} on the other. "
                    "Collect both with one probe."
                )
        if mine["budget"] != its["budget"]:
            raise IncomparableError(
                f"Expected equal sample budgets, but got {self.budget} and {other.budget}. "
                "Compare signatures of the same rung of the ladder."
            )

    def _check_units(self, other: "Signature") -> None:
        """The same names and shapes, trainable on both sides."""
        if thawed := sorted((self.units.keys() & other.frozen) | (other.units.keys() & self.frozen)):
            raise IncomparableError(
                f"Expected the same trainable units, but '{thawed[0]}' ({len(thawed)} in all) is frozen on one side "
                "only. Freeze the same parameters for both."
            )
        if missing := sorted(self.units.keys() ^ other.units.keys()):
            raise IncomparableError(
                f"Expected the same encoder units, but {missing[:3]} ({len(missing)} in all) are on one side only. "
                "Use the same architecture, and name its shared part with `encoder=`."
            )
        for name, stack in self.units.items():
            shape, its = list(stack.shape[1:]), list(other.units[name].shape[1:])
            if its != shape:
                raise IncomparableError(
                    f"Expected unit '{name}' to have one shape, but got {shape} and {its}. "
                    "Use the same architecture, and name its shared part with `encoder=`."
                )

    def _check_starts(self, other: "Signature") -> None:
        """The same values at the start, as far as both go, and of what stays frozen."""
        for name, hashes in self.starts.items():
            if any(mine != its for mine, its in zip(hashes, other.starts[name], strict=False)):
                raise IncomparableError(
                    f"Expected paired restarts, but unit '{name}' started from other values. "
                    "Collect both signatures with the same initialisation code and version of PyTorch."
                )
        for name, digest in self.frozen.items():
            if other.frozen.get(name, digest) != digest:
                raise IncomparableError(
                    f"Expected frozen parameters of equal values, but those of '{name}' differ. Start both trainings "
                    "from the same pretrained weights."
                )


def shared_units(one: Signature, other: Signature) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The principal gradients of the restarts that two comparable signatures share: the first of the one with more.

    Args:
        one: A signature.
        other: Another.

    Returns:
        Their units, ``[restarts, *shape]``.
    """
    count = min(one.restarts, other.restarts)
    first, second = ({name: stack[:count] for name, stack in side.units.items()} for side in (one, other))
    return first, second
