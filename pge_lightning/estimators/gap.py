"""The gap as an estimator: one signature of the target, and no source is opened."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pge_lightning.cache import Cache
from pge_lightning.estimators.comparison import Comparison, compare_units
from pge_lightning.estimators.estimator import Estimate, Estimates, Need
from pge_lightning.estimators.library_gaps import library_gaps
from pge_lightning.estimators.signatures import lacking, own_signature
from pge_lightning.estimators.target import Target
from pge_lightning.functional.gap import KINDS, Kind, spread_weights
from pge_lightning.functional.generality import generality as general_gaps
from pge_lightning.gap import Gap, gap_of
from pge_lightning.noise_floor import collect_halves
from pge_lightning.probe import Probe
from pge_lightning.signature import Signature
from pge_lightning.source import Source

__all__ = ["GapEstimator", "gaps"]


@dataclass(frozen=True)
class GapEstimator:
    """Sources by the gap of their principal gradients to the target's; lower is closer, between 0 and 2.

    Args:
        probe: The recipe, or the name of a shipped one; the sources must hold signatures of it.
        kind: The formula: ``"kernelwise"``, ``"layerwise"``, ``"unit"`` or ``"published"``.
        weigh: Whether each unit of a kernelwise or layerwise gap has an equal say in the ranking, by the inverse of its
            spread over the sources; takes three sources. Such gaps are to be compared within one ranking only, where
            one that is far nearer than the others may be less than 0.
        generality: How much a source's mean gap to the other sources of the library counts
            (:func:`~pge_lightning.functional.generality`), beside one for its gap to the target: what is near to much
            is near to the target, too, and this is known from many gaps. The estimate is the weighted mean of both. For
            kernelwise and layerwise gaps; takes three sources; 0 leaves the plain gap.
        budget: Rung of the ladder to compare at. By default the largest that the target fills and all readable
            sources hold.
        floor: Whether to measure the noise floor, which costs two more collections.
        name: The column in tables.

    Raises:
        ValueError: If `kind` or the probe's name is unknown, or `generality` is negative or not finite.
    """

    probe: Probe | str = "default"
    kind: Kind = "kernelwise"
    weigh: bool = True
    generality: float = 1.0
    budget: int | None = None
    floor: bool = False
    name: str = "gap"
    higher_is_better: bool = field(default=False, init=False)
    needs: frozenset[Need] = field(default=frozenset({"inputs", "labels", "signatures"}), init=False)
    cost: str = field(default="one collection for the target, whatever the number of sources", init=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Expected `kind` to be one of {KINDS}, but got {self.kind!r}.")
        if not 0 <= self.generality < math.inf:
            raise ValueError(f"Expected `generality` to be at least 0 and finite, but got {self.generality}.")
        object.__setattr__(self, "probe", Probe.of(self.probe))

    @property
    def probes(self) -> list[Probe]:
        """Its probe."""
        return [Probe.of(self.probe)]

    def estimate(self, target: Target, sources: Sequence[str]) -> Estimates:
        """Compare the target with sources.

        Args:
            target: The target.
            sources: Names of sources.

        Returns:
            Source to its gap, or to the reason why it does not compare.

        Raises:
            PGEError: If the target's signature cannot be collected.
        """
        probe = Probe.of(self.probe)
        if (errors := lacking(target, sources, probe)) is not None:
            return errors
        signature, rung = own_signature(target, probe, self.budget)
        halves = collect_halves(target.collector(probe.of_target)) if self.floor else None
        how = (self.kind, halves, self.weigh, self.generality)

        def compare_all() -> tuple[Estimates, Gap | None, bool]:
            chosen = {name: target.sources[name] for name in sources}
            cache = target.library.cache if target.cache else None
            return gaps(signature, chosen, *how, probe=probe, rung=rung, cache=cache, progress=target.verbose)

        found, floor, weighed = target.alone(compare_all)
        details = {"kind": self.kind, "weighed": weighed, "probe": probe.name, "budget": signature.budget, "rung": rung}
        target.details[self.name] = {**details, "generality": self.generality, "noise_floor": floor and floor.value}
        if floor is not None:
            text = f"{floor.value:.3f} ± {floor.standard_error:.3f}"
            plain = " (of plain gaps)" if self.generality else ""
            target.notes.append(f"Noise floor of {self.name} at {floor.budget} samples: {text}{plain}.")
        return found


def gaps(
    target: Signature,
    sources: Mapping[str, Source | Exception],
    kind: Kind = "kernelwise",
    halves: tuple[Signature, Signature] | None = None,
    weigh: bool = True,
    generality: float = 0.0,
    *,
    probe: Probe | None = None,
    rung: int | None = None,
    cache: Cache | None = None,
    progress: bool = False,
) -> tuple[dict[str, Estimate | Exception], Gap | None, bool]:
    """Compare a signature with those of all sources; whatever is wrong with one of them takes the place of its gap.

    Args:
        target: The target's signature.
        sources: Name to the opened source, or to what went wrong in opening it.
        kind: The formula of the gap.
        halves: Signatures of two halves of the target's data, whose plain gap is the noise floor.
        weigh: Whether units count by the inverse of their spread over the sources
            (:func:`~pge_lightning.functional.spread_weights`), which takes three sources.
        generality: Weight of a source's gap to the other sources, beside one for its gap to the target.
        probe: What the sources' signatures are of; by default what the target's is of.
        rung: Their rung; by default the target's.
        cache: Where directions of sources and gaps between them are kept.
        progress: Whether to show a bar while gaps between sources are measured.

    Returns:
        Name to gap or error, the noise floor if there are halves, and whether units were weighed.
    """
    if probe is None:
        probe, rung = target.probe, target.fingerprint["budget"]
    measured = Comparison(target, kind, probe, rung, cache).measure(sources)
    tables = {name: table for name, table in measured.items() if isinstance(table, Tensor)}
    opened = {name: source for name in tables if isinstance(source := sources[name], Source)}
    among = None
    if generality and len(tables) > 2 and kind in ("kernelwise", "layerwise"):
        among = library_gaps(opened, probe, rung, kind, cache, progress)
        rows = len(next(iter(tables.values())))
        among = among[:, :, :rows] if among is not None else None  # the target may take fewer restarts
    values, weights = _weighed([*tables.values()], among, generality, weigh) if tables else (torch.empty(0), None)
    told = dict(zip(tables, values.tolist(), strict=True))
    found: dict[str, Estimate | Exception] = {}
    for name, table in measured.items():
        if isinstance(table, Tensor):
            found[name] = _estimate(gap_of(told[name], kind, target.budget))
        else:
            found[name] = table if isinstance(table, Exception) else _estimate(table)
    return found, _floor(halves, weights, kind), weights is not None


def _estimate(gap: Gap) -> Estimate:
    return Estimate(gap.value, gap.standard_error, gap.low, gap.high, gap.per_restart)


def _weighed(
    tables: Sequence[Tensor], among: Tensor | None, generality: float, weigh: bool
) -> tuple[Tensor, Tensor | None]:
    """All sources' gaps ``[sources, restarts]``, and the weights of units, where they have any."""
    own = torch.stack([*tables])
    plain = _combined(own, among, generality, None)
    if not weigh or len(tables) < 3:
        return plain, None
    weights = spread_weights(own)
    values = _combined(own, among, generality, weights)
    # Weights say how far sources are from each other. How far all of them are would differ between draws of restarts by
    # more than the stated intervals: the mean over sources stays that of equal weights.
    return values + (plain - values).mean(dim=0), weights


def _combined(own: Tensor, among: Tensor | None, generality: float, weights: Tensor | None) -> Tensor:
    """Means over units of the sources' gaps to the target, and of those to other sources."""
    mean = _mean(own, weights)
    return mean if among is None else (mean + generality * general_gaps(_mean(among, weights))) / (1 + generality)


def _mean(gaps: Tensor, weights: Tensor | None) -> Tensor:
    """The mean over the last dimension, that of units, by the weights where there are any."""
    return gaps.mean(dim=-1) if weights is None else gaps @ weights


def _floor(halves: tuple[Signature, Signature] | None, weights: Tensor | None, kind: Kind) -> Gap | None:
    if halves is None:
        return None
    found = compare_units(*halves, kind)
    return found if isinstance(found, Gap) else gap_of(_mean(found, weights).tolist(), kind, halves[0].budget)
