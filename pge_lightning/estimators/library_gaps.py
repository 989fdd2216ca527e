"""Gaps between the sources of a library: measured once per pair, and kept beside the sources."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from pge_lightning.cache import Cache, key_of
from pge_lightning.errors import ArtifactError, PGEError
from pge_lightning.estimators.signatures import directions_of
from pge_lightning.functional.directions import gaps_of_directions
from pge_lightning.functional.gap import gaps_by_unit
from pge_lightning.functional.stack import UnitKind
from pge_lightning.probe import Probe
from pge_lightning.source import SignatureEntry, Source

__all__ = ["REFERENCES", "SAME", "library_gaps"]

# More hardly change what is said of a source, and each is to be compared once with every source.
REFERENCES = 16
# Halves of one data set are farther apart than this; what rounding does is nearer.
SAME = 0.05


def library_gaps(
    sources: Mapping[str, Source],
    probe: Probe,
    rung: int | None,
    kind: UnitKind,
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
    recipe = probe.recipe
    found = {name: source.find(recipe, rung) for name, source in sources.items()}
    entries = {name: entry for name, entry in found.items() if entry is not None}
    rows = {name: row for row, name in enumerate(sorted(entries))}
    columns: list[tuple[np.ndarray, np.ndarray]] = []
    twins: set[int] = set()
    # By their digests, which have nothing to do with what they are, so that another source changes few of them.
    for name in sorted(entries, key=lambda name: entries[name].sha256):
        if rows[name] not in twins and len(columns) < REFERENCES:
            column = _column(sources, entries, name, kind, cache, progress)
            others, tables = np.array([rows[other] for other in column], dtype=int), _stack(column)
            # A library may hold many checkpoints of the reference's own data set.
            same = tables.mean(axis=(1, 2)) < SAME
            twins |= {*others[same].tolist()}
            columns.append((others[~same], tables[~same]))
    return _table(columns, len(rows))


def _stack(column: Mapping[str, np.ndarray]) -> np.ndarray:
    # In NumPy: PyTorch would share out so little work among threads, which on a busy machine wait long for each other.
    return np.stack([*column.values()]) if column else np.empty((0, 1, 1))


def _table(columns: Sequence[tuple[np.ndarray, np.ndarray]], count: int) -> Tensor | None:
    """All gaps, nan where there is none; ``None`` where there are none at all."""
    shape = next((tables.shape[1:] for _, tables in columns if len(tables)), None)
    if shape is None:
        return None
    found = np.full((count, len(columns), *shape), np.nan)
    for number, (rows, tables) in enumerate(columns):
        found[rows, number] = tables
    return torch.as_tensor(found)


def _column(
    sources: Mapping[str, Source],
    entries: Mapping[str, SignatureEntry],
    name: str,
    kind: UnitKind,
    cache: Cache | None,
    progress: bool,
) -> dict[str, np.ndarray]:
    """Gaps of the others to one source, as far as they compare: those that are kept, and fresh ones, which then are."""
    keys = {other: key_of(entry.sha256, kind) for other, entry in entries.items()}
    own = keys.pop(name)
    kept = cache.get_gaps(own) if cache is not None else {}
    found = {other: kept[key] for other, key in keys.items() if key in kept}
    missing = [other for other in keys if other not in found]
    fresh = _compare(sources, entries, name, missing, kind, cache, progress) if missing else {}
    if cache is not None and fresh:
        with suppress(ArtifactError):  # a library that cannot be written can be ranked
            cache.put_gaps(own, {**kept, **{keys[other]: table for other, table in fresh.items()}})
    return found | fresh


def _compare(
    sources: Mapping[str, Source],
    entries: Mapping[str, SignatureEntry],
    name: str,
    others: Sequence[str],
    kind: UnitKind,
    cache: Cache | None,
    progress: bool,
) -> dict[str, np.ndarray]:
    try:
        own = directions_of(sources[name], entries[name], kind, cache)
    except (PGEError, ValueError, OSError):  # what is wrong with a signature is told where it is judged
        return {}

    def compare(other: str) -> np.ndarray | None:
        with suppress(PGEError, ValueError, OSError):
            theirs = directions_of(sources[other], entries[other], kind, cache)
            if own.shared(theirs):
                return gaps_of_directions(theirs.units, own.units).numpy()
            pair = [sources[each].load_signature(entries[each]) for each in (other, name)]
            pair[0].check_comparable(pair[1])
            return gaps_by_unit(pair[0].units, pair[1].units, kind).numpy()
        return None

    with ThreadPoolExecutor() as pool:
        tried = (map if cache is not None and cache.is_local else pool.map)(compare, others)
        tables = track(tried, "Comparing sources", len(others), disable=not progress, transient=True)
        return {other: table for other, table in zip(others, tables, strict=True) if table is not None}
