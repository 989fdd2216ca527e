"""Comparison: a target's signature beside those of many sources, by what a formula takes of them."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from torch import Tensor

from pge_lightning.cache import Cache
from pge_lightning.directions import Directions
from pge_lightning.errors import PGEError
from pge_lightning.estimators.signatures import keep_directions, kept_directions, signature_of
from pge_lightning.functional.directions import gaps_of_directions
from pge_lightning.functional.gap import Kind, gaps_by_unit
from pge_lightning.gap import Gap, compare
from pge_lightning.probe import Probe
from pge_lightning.signature import Signature, shared_units
from pge_lightning.source import Source

__all__ = ["Comparison", "compare_units"]


class Comparison:
    """A target's signature, to be compared with those of sources.

    Kernelwise and layerwise by directions wherever these tell that both sides compare: the gaps are those of
    :func:`compare_units` to within 1e-6, and what is kept changes no bit of them. Everything else is compared, or
    refused, by the signatures themselves.

    Args:
        target: The target's signature.
        kind: The formula of the gap.
        probe: What the sources' signatures are of.
        rung: Their rung; ``None`` for a probe without budgets.
        cache: Where directions of sources are kept.
    """

    def __init__(self, target: Signature, kind: Kind, probe: Probe, rung: int | None, cache: Cache | None) -> None:
        self.target, self.kind, self.probe, self.rung, self.cache = target, kind, probe, rung, cache
        self._recipe, self._own = probe.recipe, self._directions()

    def measure(self, sources: Mapping[str, Source | Exception]) -> dict[str, Tensor | Gap | Exception]:
        """Compare the target with sources.

        Args:
            sources: Name to the opened source, or to what went wrong in opening it.

        Returns:
            Name to the source's gaps ``[restarts, units]``, or its gap where the formula has no units, or what went
            wrong; in the order of names, whatever that of the library is, so that sums over sources are the same to the
            last bit.
        """
        names = sorted(sources)
        with ThreadPoolExecutor() as pool:
            look = map if self.cache is None or self.cache.is_local else pool.map
            known = dict(zip(names, look(lambda name: self._look_up(sources[name]), names), strict=True))
            rest = [name for name, table in known.items() if table is None]
            read = dict(zip(rest, pool.map(lambda name: self._read(sources[name]), rest), strict=True))
        return {name: read[name] if table is None else table for name, table in known.items()}

    def _look_up(self, source: Source | Exception) -> Tensor | None:
        """A source's gaps by the directions that are kept of it, where these tell that both sides compare."""
        entry = None if isinstance(source, Exception) else source.find(self._recipe, self.rung)
        if self._own is None or entry is None or self.kind not in ("kernelwise", "layerwise"):
            return None
        return self._by_directions(kept_directions(entry, self.kind, self.cache))

    def _read(self, source: Source | Exception) -> Tensor | Gap | Exception:
        """A source's gaps ``[restarts, units]``, or its gap where the formula has no units, or what went wrong."""
        if isinstance(source, Exception):
            return source
        try:
            signature = signature_of(source, self.probe, self.rung)
            found = self._by_fresh_directions(source, signature)
            return compare_units(signature, self.target, self.kind) if found is None else found
        except (PGEError, ValueError, OSError) as error:
            return error

    def _by_fresh_directions(self, source: Source, signature: Signature) -> Tensor | None:
        entry = source.find(self._recipe, self.rung)
        if self._own is None or entry is None or self.kind not in ("kernelwise", "layerwise"):
            return None
        try:
            theirs = Directions.of(signature, self.kind)
        except ValueError:  # not finite; what recipe, units and starts have against a comparison is to be told first
            return None
        found = self._by_directions(theirs)
        if found is not None:
            keep_directions(theirs, entry, self.kind, self.cache)
        return found

    def _by_directions(self, theirs: Directions | None) -> Tensor | None:
        if self._own is None or theirs is None or not (count := self._own.shared(theirs)):
            return None
        return gaps_of_directions(theirs.first(count), self._own.first(count))

    def _directions(self) -> Directions | None:
        """The target's, as if it were a source; ``None`` where it cannot be, of which the comparisons tell."""
        if self.kind not in ("kernelwise", "layerwise") or not self.target.probe.paired:
            return None
        source = replace(self.target, probe=self.probe, budget=self.rung or self.target.budget)
        try:
            source.check_comparable(self.target)
            return Directions.of(source, self.kind)
        except (PGEError, ValueError):
            return None


def compare_units(source: Signature, target: Signature, kind: Kind) -> Tensor | Gap:
    """Compare two signatures.

    Args:
        source: One of them.
        target: The other.
        kind: The formula of the gap.

    Returns:
        Gaps ``[restarts, units]``, or the gap where the formula has no units.
    """
    if kind in ("kernelwise", "layerwise") and target.probe.paired:
        source.check_comparable(target)
        return gaps_by_unit(*shared_units(source, target), kind)
    return compare(source, target, kind)
