"""Gaps between the sources of a library: measured once per pair, and kept beside the sources."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Literal, TypeAlias

import torch
from rich.progress import track
from torch import Tensor

from pge_lightning.cache import Cache
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.functional.gap import gaps_by_unit
from pge_lightning.probe import Probe
from pge_lightning.signature import Signature
from pge_lightning.source import SignatureEntry, Source

_Kind: TypeAlias = Literal["kernelwise", "layerwise"]

__all__ = ["REFERENCES", "SAME", "library_gaps"]

# More hardly change what is said of a source, and each is a signature to be read once for every source.
REFERENCES = 16
# Halves of one data set are farther apart than this; what rounding does is nearer.
SAME = 0.05


def library_gaps(
    sources: Mapping[str, Source],
    probe: Probe,
    rung: int | None,
    kind: _Kind,
    cache: Cache | None,
    progress: bool = False,
) -> Tensor | None:
    """Compare every source with up to 16 of them, the same ones for all, and no two of one data set.

    Args:
        sources: Name to a source, whose signatures compare with each other.
        probe: What they are of; paired.
        rung: Their rung; ``None`` for a probe without budgets.
        kind: The formula.
        cache: Where gaps are looked for, and kept.
        progress: Whether to show a bar over the sources.

    Returns:
        ``[sources, references, restarts, units]``, sources in the order of their names; nan where a source and its
        reference are of one data set, or do not compare; ``None`` where no two can be.
    """
    found = {name: source.find(probe.recipe, rung) for name, source in sources.items()}
    entries = {name: entry for name, entry in found.items() if entry is not None}
    # By their digests, which have nothing to do with what they are, so that another source changes few of them.
    order = sorted(entries, key=lambda name: entries[name].sha256)
    tables: dict[tuple[str, str], Tensor] = {}
    references: list[str] = []
    for number, name in enumerate(track([*order, *order], "Comparing sources", disable=not progress, transient=True)):
        others = [other for other in references if other != name and (name, other) not in tables]
        for other, table in _row(sources, entries, name, others, kind, cache).items():
            tables[name, other] = tables[other, name] = table
        if number < len(order) and len(references) < REFERENCES:
            twins = (other for other in references if (name, other) in tables and _same(tables[name, other]))
            references += [name] if next(twins, None) is None else []
    told = {pair: table for pair, table in tables.items() if not _same(table)}
    if not told:
        return None
    empty = torch.full_like(next(iter(told.values())), torch.nan)
    return torch.stack([
        torch.stack([told.get((name, other), empty) for other in references]) for name in sorted(order)
    ])


def _same(table: Tensor) -> bool:
    """Whether both signatures are of one data set, of which a library may hold many checkpoints."""
    return bool(table.mean() < SAME)


def _row(
    sources: Mapping[str, Source],
    entries: Mapping[str, SignatureEntry],
    name: str,
    others: list[str],
    kind: _Kind,
    cache: Cache | None,
) -> dict[str, Tensor]:
    """Gaps of one source to others, as far as they compare: those that are kept, and fresh ones, which then are."""
    key = f"{entries[name].probe}-{entries[name].budget}-{entries[name].sha256[:16]}"
    columns = {other: f"{kind}-{entries[other].sha256[:16]}" for other in others}
    kept = cache.get_gaps(key) if cache is not None and others else {}
    found = {other: kept[column] for other, column in columns.items() if column in kept}
    missing = [other for other in others if other not in found]
    fresh = _compare(sources[name], entries[name], {other: (sources[other], entries[other]) for other in missing}, kind)
    if cache is not None and fresh:
        with suppress(ArtifactError):  # a library that cannot be written can be ranked
            cache.put_gaps(key, {**kept, **{columns[other]: table for other, table in fresh.items()}})
    return found | fresh


def _compare(
    source: Source, entry: SignatureEntry, others: Mapping[str, tuple[Source, SignatureEntry]], kind: _Kind
) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    own: Signature | None = None
    for name, (other, theirs) in others.items():
        with suppress(PGEError, ValueError, OSError):  # what is wrong with a signature is told where it is judged
            own = own or source.load_signature(entry)
            against = other.load_signature(theirs)
            own.check_comparable(against)
            found[name] = gaps_by_unit(own.units, against.units, kind)
    return found
