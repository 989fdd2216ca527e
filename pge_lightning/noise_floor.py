"""Noise floor: the gap between two halves of one data set, which no source can be expected to beat."""

import torch

from pge_lightning.collect import Collector
from pge_lightning.errors import PGEError
from pge_lightning.functional.gap import Kind
from pge_lightning.gap import Gap, compare
from pge_lightning.isolation import derive_seed
from pge_lightning.signature import Signature

__all__ = ["collect_halves", "noise_floor"]


def collect_halves(collector: Collector) -> tuple[Signature, Signature]:
    """Signatures of two disjoint halves of a data set, whose gap no source can be expected to beat.

    Args:
        collector: The data set's collector.

    Returns:
        Both, at the largest rung that a half fills, or at all of a half where it fills none.

    Raises:
        PGEError: If a half is smaller than a batch.
    """
    size = len(collector.pool)
    half = size // 2
    if half < collector.probe.batch_size:
        raise PGEError(
            f"Expected two halves of at least {collector.probe.batch_size} samples each, but got {size} in all. "
            "Ask for no noise floor, or use a smaller `batch_size` of the probe."
        )
    order = torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(collector.probe.seed, "halves")))
    budget = max((rung for rung in collector.probe.budgets if rung <= half), default=half)
    first, second = (collector.part(sorted(order[start : start + half].tolist())) for start in (0, half))
    return first.collect(budget), second.collect(budget)


def noise_floor(collector: Collector, kind: Kind = "kernelwise") -> Gap:
    """Gap between two disjoint halves of a data set, at equal budgets: what no source can be expected to beat.

    Args:
        collector: The data set's collector.
        kind: The formula of the gap.

    Returns:
        The gap; see :func:`collect_halves` for its budget.
    """
    return compare(*collect_halves(collector), kind)
