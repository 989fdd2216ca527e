"""Signatures of one probe on both sides, as estimators that compare them ask for."""

from collections.abc import Sequence

from pge_lightning.errors import PGEError, SilentError
from pge_lightning.estimators.estimator import Estimates
from pge_lightning.estimators.target import Target
from pge_lightning.probe import Probe
from pge_lightning.signature import Signature
from pge_lightning.source import Source

__all__ = ["lacking", "own_signature", "signature_of"]


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


def own_signature(target: Target, probe: Probe, budget: int | None) -> Signature:
    """The target's signature.

    Args:
        target: The target.
        probe: The probe.
        budget: Rung of its ladder; by default the largest that the target fills and all readable sources hold.

    Returns:
        The signature.

    Raises:
        PGEError: If the target does not fill that rung, or the signature cannot be collected.
    """
    rungs = target.collector(probe).budgets
    if budget is not None and probe.budgets and budget not in rungs:
        raise PGEError(f"Expected `budget` to be a rung that the target fills, one of {rungs}, but got {budget}.")
    return target.signature(probe, budget)


def signature_of(source: Source, target: Signature) -> Signature:
    """The source's signature of the target's probe and rung.

    Args:
        source: The source.
        target: The target's signature.

    Returns:
        The signature.

    Raises:
        PGEError: If the source has none, or its file is damaged.
    """
    entry = source.find(target.probe.recipe, target.fingerprint["budget"])
    if entry is None:
        held = sorted({f"'{other.probe}' at {other.budget}" for other in source.signatures})
        raise PGEError(
            f"Expected a signature of probe '{target.probe.name}' at {target.budget} samples, but it has "
            f"{', '.join(held) or 'none'}. Collect it with this probe."
        )
    return source.load_signature(entry)
