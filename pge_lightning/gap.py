"""The gap between two signatures, and how sure it is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pge_lightning.functional.gap import (
    KINDS,
    Kind,
    kernelwise_gap,
    layerwise_gap,
    left_out_gaps,
    principal_gradient_gap,
)
from pge_lightning.intervals import error_and_margin
from pge_lightning.signature import Signature, shared_units

__all__ = ["KINDS", "Gap", "compare", "gap_of", "paired_difference", "tied"]


@dataclass(frozen=True)
class Gap:
    """Distance of a source to a target; lower is more transferable.

    Args:
        value: The gap.
        standard_error: Standard error of `value` over restarts; nan where there is one restart only.
        low: Lower end of the confidence interval, at least 0; nan where there is one restart only.
        high: Upper end; at most 2 but for the published kind, which has no bound.
        per_restart: One value per restart: the gap of that restart (kernelwise, layerwise), or its jackknife
            pseudo-value.
        kind: The formula, one of ``KINDS``.
        budget: Samples that each restart drew from the target.
    """

    value: float
    standard_error: float
    low: float
    high: float
    per_restart: tuple[float, ...]
    kind: Kind
    budget: int


def compare(source: Signature, target: Signature, kind: Kind = "kernelwise", confidence: float = 0.95) -> Gap:
    """Gap between two signatures with its standard error and Student-t interval over restarts.

    The kernelwise and layerwise gaps are means over restarts, which are independent draws, so that their error is that
    of a mean. The other kinds are functions of a mean gradient; theirs comes from the jackknife, which leaves one
    restart out at a time
    (Tukey 1958; Efron and Tibshirani 1993, chapter 11).

    Args:
        source: Signature of the data set that a checkpoint was trained on.
        target: Signature of the data set to be fine-tuned on.
        kind: ``"kernelwise"``, ``"layerwise"``, ``"unit"`` or ``"published"``.
        confidence: Probability that the interval covers the gap of infinitely many restarts, in (0, 1).

    Returns:
        The gap; error and interval are nan with one restart, and for unpaired probes.

    Raises:
        IncomparableError: If the signatures do not come from the same probe and starts.
        ValueError: If `kind` or `confidence` is out of range, a gradient is not finite, or the formula divides by
            the length of a gradient that is zero.

    Example:
        >>> import torch
        >>> from pge_lightning.probe import Probe
        >>> probe = Probe(restarts=2)
        >>> source, target = (
        ...     Signature({"weight": torch.tensor(stack)}, {"weight": ("a", "b")}, probe, 200, 2, data, 500)
        ...     for data, stack in {"s": [[1.0, 0.0], [1.0, 0.0]], "t": [[0.0, 2.0], [3.0, 0.0]]}.items()
        ... )
        >>> gap = compare(source, target)
        >>> gap.value, gap.standard_error, gap.per_restart
        (0.5, 0.5, (1.0, 0.0))
    """
    source.check_comparable(target)
    value, values = _estimate(source, target, kind)
    return gap_of(values, kind, target.budget, value, confidence)


def gap_of(
    values: Sequence[float], kind: Kind, budget: int, value: float | None = None, confidence: float = 0.95
) -> Gap:
    """A gap from its values per restart.

    Args:
        values: One per restart, or their jackknife pseudo-values.
        kind: The formula they come from.
        budget: Samples that each restart drew.
        value: The gap, where it is not the mean of the values.
        confidence: Probability that the interval covers the gap of infinitely many restarts, in (0, 1).

    Returns:
        The gap with its standard error and Student-t interval.

    Raises:
        ValueError: If `confidence` is out of range.
    """
    value = math.fsum(values) / len(values) if value is None else value
    error, margin = error_and_margin(values, confidence)
    low = math.nan if math.isnan(margin) else max(0.0, value - margin)
    high = value + margin if kind == "published" or math.isnan(margin) else min(2.0, value + margin)
    return Gap(value, error, low, high, tuple(values), kind, budget)


def paired_difference(a: Gap, b: Gap, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of ``a - b`` over restarts, with its Student-t interval.

    Restart ``k`` holds the same target gradient, from the same start, in both gaps. What that draw adds to both
    cancels in their difference, so this interval is narrower than the two intervals of the gaps suggest: those may
    overlap widely while one source is nearer in every single restart. Overlap would be a test only of independent
    gaps, and even there one that calls too many pairs ties.

    Args:
        a: Gap of one source to the target.
        b: Gap of another source to the same target, with equal kind, budget and restarts.
        confidence: Probability that the interval covers the difference of infinitely many restarts, in (0, 1).

    Returns:
        Mean, low and high; a negative mean says that `a` is nearer. The interval is nan with one restart. For kinds
        other than kernelwise and layerwise the mean is that of pseudo-values, free of the first-order bias of
        ``a.value - b.value``.

    Raises:
        ValueError: If the gaps differ in kind, budget or number of restarts, or `confidence` is out of range.

    Example:
        >>> near = Gap(0.5, 0.1, 0.1, 0.9, (0.4, 0.5, 0.6), "layerwise", 200)
        >>> far = Gap(0.6, 0.1, 0.2, 1.0, (0.5, 0.6, 0.7), "layerwise", 200)
        >>> [round(number, 6) for number in paired_difference(near, far)]
        [-0.1, -0.1, -0.1]
    """
    for field, mine, its in (
        ("kind", a.kind, b.kind),
        ("budget", a.budget, b.budget),
        ("number of restarts", len(a.per_restart), len(b.per_restart)),
    ):
        if mine != its:
            raise ValueError(f"Expected gaps of one {field}, but got {mine} and {its}. Compare both in one way.")
    differences = [mine - its for mine, its in zip(a.per_restart, b.per_restart, strict=True)]
    mean = math.fsum(differences) / len(differences)
    _, margin = error_and_margin(differences, confidence)
    return mean, mean - margin, mean + margin


def tied(a: Gap, b: Gap, confidence: float = 0.95) -> bool:
    """Whether the restarts cannot tell which of two sources is nearer to their common target.

    Args:
        a: Gap of one source to the target.
        b: Gap of another source to the same target, with equal kind, budget and restarts.
        confidence: Confidence of the interval of :func:`paired_difference`, in (0, 1).

    Returns:
        True where that interval holds 0, or is nan because there is one restart only.

    Raises:
        ValueError: If the gaps differ in kind, budget or number of restarts, or `confidence` is out of range.

    Example:
        >>> near = Gap(0.5, 0.1, 0.1, 0.9, (0.4, 0.5, 0.6), "layerwise", 200)
        >>> far = Gap(0.6, 0.1, 0.2, 1.0, (0.5, 0.6, 0.7), "layerwise", 200)
        >>> tied(near, far), tied(near, near)
        (False, True)
    """
    _, low, high = paired_difference(a, b, confidence)
    return not (low > 0 or high < 0)


def _estimate(source: Signature, target: Signature, kind: Kind) -> tuple[float, tuple[float, ...]]:
    units = shared_units(source, target)
    if kind in ("kernelwise", "layerwise") and source.probe.paired:
        gaps = (kernelwise_gap if kind == "kernelwise" else layerwise_gap)(*units)
        return float(gaps.mean()), tuple(gaps.tolist())
    value = float(principal_gradient_gap(*units, kind))
    count = len(next(iter(units[0].values())))
    if count == 1 or not source.probe.paired:
        return value, (value,)
    left_out = left_out_gaps(*units, kind).tolist()
    return value, tuple(count * value - (count - 1) * gap for gap in left_out)
