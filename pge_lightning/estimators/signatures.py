"""Signatures of one probe on both sides, as estimators that compare them ask for."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from pge_lightning.cache import Cache, key_of
from pge_lightning.directions import Directions
from pge_lightning.errors import ArtifactError, PGEError, SilentError
from pge_lightning.estimators.estimator import Estimates
from pge_lightning.estimators.target import Target
from pge_lightning.functional.stack import UnitKind
from pge_lightning.probe import Probe
from pge_lightning.signature import Signature
from pge_lightning.source import SignatureEntry, Source

__all__ = [
    "directions_of",
    "keep_directions",
    "kept_directions",
    "lacking",
    "own_signature",
    "signature_of",
]


def lacking(target: Target, sources: Sequence[str], probe: Probe) -> Estimates | None:
    """Whether there is nothing to compare with, so that the target's signature would be collected in vain.

    Args:
        target: The target.
        sources: Names of sources.
        probe: The probe.

    Returns:
        ``None`` where a source holds a signature of the probe; else the error for each.
    """

    def look() -> Estimates | None:
        asked = {name: target.sources[name] for name in sources}
        opened = [source for source in asked.values() if isinstance(source, Source)]
        if any(entry.recipe == probe.recipe for source in opened for entry in source.signatures):
            return None
        error = SilentError(
            f"Expected a signature of probe '{probe.name}', but it has none. Collect it with this probe."
        )
        return {name: source if isinstance(source, Exception) else error for name, source in asked.items()}

    return target.alone(look)


def own_signature(target: Target, probe: Probe, budget: int | None) -> tuple[Signature, int | None]:
    """The target's signature, and what it compares with.

    Args:
        target: The target.
        probe: The probe.
        budget: Rung of its ladder; by default the largest that all readable sources hold, and that the target fills
            where it is walked as the sources.

    Returns:
        The signature, and the rung of the sources' signatures, ``None`` for a probe without budgets.

    Raises:
        PGEError: If the target does not fill that rung, or the signature cannot be collected.
    """
    rungs = target.rungs(probe)
    if budget is not None and probe.budgets and budget not in rungs:
        raise PGEError(f"Expected `budget` to be a rung that the target fills, one of {rungs}, but got {budget}.")
    rung = target.budget(probe) if budget is None else budget
    return target.signature(probe, rung), rung if probe.budgets else None


def signature_of(source: Source, probe: Probe, rung: int | None) -> Signature:
    """The source's signature of a probe and rung.

    Args:
        source: The source.
        probe: The probe.
        rung: Rung of its ladder; ``None`` for a probe without budgets.

    Returns:
        The signature.

    Raises:
        PGEError: If the source has none, or its file is damaged.
    """
    entry = source.find(probe.recipe, rung)
    if entry is None:
        held = sorted({f"'{other.probe}' at {other.budget}" for other in source.signatures})
        raise PGEError(
            f"Expected a signature of probe '{probe.name}' at {rung or 'all'} samples, but it has "
            f"{', '.join(held) or 'none'}. Collect it with this probe."
        )
    # How targets are walked is for those who rank to say.
    return replace(source.load_signature(entry), probe=probe)


def directions_of(source: Source, entry: SignatureEntry, kind: UnitKind, cache: Cache | None) -> Directions:
    """The directions of one of a source's signatures: those that are kept, or fresh ones, which then are.

    Args:
        source: The source.
        entry: The signature.
        kind: The formula that asks for them.
        cache: Where they are looked for, and kept.

    Returns:
        The directions.

    Raises:
        PGEError: If none are kept, and the signature's file is damaged.
        ValueError: If the signature holds values that are not finite.
    """
    kept = kept_directions(entry, kind, cache)
    if kept is not None:
        return kept
    fresh = Directions.of(source.load_signature(entry), kind)
    keep_directions(fresh, entry, kind, cache)
    return fresh


def kept_directions(entry: SignatureEntry, kind: UnitKind, cache: Cache | None) -> Directions | None:
    """Look for the directions of a source's signature.

    They are of a signature that was whole, and are known by its SHA-256: no other is taken for it. A file that was
    damaged since is not noticed here; ``Library.verify``, and whatever reads the signature itself, tells of it.

    Args:
        entry: The signature.
        kind: The formula that asks for them.
        cache: Where they are looked for.

    Returns:
        The directions, or ``None`` if none are kept.
    """
    return cache.get_directions(key_of(entry.sha256, kind)) if cache is not None else None


def keep_directions(directions: Directions, entry: SignatureEntry, kind: UnitKind, cache: Cache | None) -> None:
    """Keep the directions of a source's signature for other rankings, if that can be.

    Args:
        directions: The directions.
        entry: The signature.
        kind: The formula that asks for them.
        cache: Where they are kept.
    """
    if cache is not None:
        with suppress(ArtifactError):  # a library that cannot be written can be ranked
            cache.put_directions(key_of(entry.sha256, kind), directions)
