"""The four gaps between two stacks of principal gradients, as pure functions."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pge_lightning.functional.stack import (
    Stack,
    UnitKind,
    check_finite,
    common_units,
    cosines,
    mean_gradients,
    norms,
    total,
    units_of,
)

__all__ = [
    "KINDS",
    "Kind",
    "gaps_by_unit",
    "kernelwise_gap",
    "layerwise_gap",
    "left_out_gaps",
    "principal_gradient_gap",
    "published_gap",
    "spread_weights",
    "unit_gap",
]

Kind: TypeAlias = Literal["kernelwise", "layerwise", "unit", "published"]
KINDS: tuple[Kind, ...] = ("kernelwise", "layerwise", "unit", "published")


def published_gap(source: Stack, target: Stack) -> Tensor:
    r"""Gap as the literature defines it (principal gradient expectation, arXiv 2211.16299).

    .. math:: |G_S - G_T| / (|G_S| |G_T|), \quad G = \text{mean over restarts, over all units}

    It is not free of scale: its square is :math:`1/|G_S|^2 + 1/|G_T|^2 - 2 \cos(G_S, G_T) / (|G_S| |G_T|)`, so that
    gradients ``c`` times as long have a gap ``c`` times smaller, and nearly orthogonal ones are ranked by their
    lengths alone.

    Args:
        source: Weight unit to its principal gradients, ``[restarts, *shape]``, float32.
        target: The same units, shapes and number of restarts for the other data set.

    Returns:
        Scalar in float64, at least 0, in units of one over the gradient's; lower is more transferable.

    Raises:
        ValueError: If the stacks differ in layout, hold a value that is not finite, or one side's mean is zero.

    Example:
        >>> import torch
        >>> from pge_lightning.functional import published_gap
        >>> published_gap({"weight": torch.tensor([[3.0, 0.0]])}, {"weight": torch.tensor([[0.0, 4.0]])})
        tensor(0.4167, dtype=torch.float64)
    """
    return _published(mean_gradients(source, target))


def unit_gap(source: Stack, target: Stack) -> Tensor:
    r"""Distance of the two mean gradients after each is brought to length one.

    .. math:: | G_S / |G_S| - G_T / |G_T| | = \sqrt{2 - 2 \cos(G_S, G_T)}

    Args:
        source: Weight unit to its principal gradients, ``[restarts, *shape]``, float32.
        target: The same units, shapes and number of restarts for the other data set.

    Returns:
        Scalar in float64, in [0, 2], free of the gradients' scale; lower is more transferable.

    Raises:
        ValueError: If the stacks differ in layout, hold a value that is not finite, or one side's mean is zero.

    Example:
        >>> import torch
        >>> from pge_lightning.functional import unit_gap
        >>> unit_gap({"weight": torch.tensor([[3.0, 0.0]])}, {"weight": torch.tensor([[0.0, 4.0]])})
        tensor(1.4142, dtype=torch.float64)
    """
    return _unit(mean_gradients(source, target))


def layerwise_gap(source: Stack, target: Stack) -> Tensor:
    r"""Mean over weight units of one minus the cosine, for each restart by itself.

    .. math:: \text{gap}_k = \text{mean}_u \, (1 - \cos(g_S^{k,u}, g_T^{k,u}))

    Where restart ``k`` started both sides from equal weights, the values are independent draws of one quantity; the
    gap is their mean. A unit that is zero on both sides counts as equal (0), on one side only as orthogonal (1).

    Args:
        source: Weight unit to its principal gradients, ``[restarts, *shape]``, float32.
        target: The same units, shapes and number of restarts for the other data set.

    Returns:
        ``[restarts]`` in float64, in [0, 2], free of the scale of every gradient; lower is more transferable.

    Raises:
        ValueError: If the stacks differ in layout or hold a value that is not finite.

    Example:
        >>> import torch
        >>> from pge_lightning.functional import layerwise_gap
        >>> source = {"weight": torch.tensor([[1.0, 0.0], [1.0, 0.0]])}
        >>> target = {"weight": torch.tensor([[0.0, 2.0], [3.0, 0.0]])}
        >>> layerwise_gap(source, target)
        tensor([1., 0.], dtype=torch.float64)
    """
    return gaps_by_unit(source, target, "layerwise").mean(dim=1)


def kernelwise_gap(source: Stack, target: Stack) -> Tensor:
    r"""The layerwise gap over matrices and convolution kernels but for the last; over all units where there are none.

    Biases and the scales of normalisation have few entries: between unrelated gradients of :math:`d` entries the
    cosine scatters by :math:`1/\sqrt{d}`, and what they share is mostly what every data set asks of them. What the last
    kernel does is up to the head above it, whose start data sets do not share.

    Args:
        source: Weight unit to its principal gradients, ``[restarts, *shape]``, float32.
        target: The same units, shapes and number of restarts for the other data set.

    Returns:
        ``[restarts]`` in float64, in [0, 2], free of the scale of every gradient; lower is more transferable.

    Raises:
        ValueError: If the stacks differ in layout or hold a value that is not finite.

    Example:
        >>> import torch
        >>> from pge_lightning.functional import kernelwise_gap
        >>> source = {"weight": torch.tensor([[[1.0, 0.0]]]), "bias": torch.tensor([[1.0]])}
        >>> target = {"weight": torch.tensor([[[0.0, 2.0]]]), "bias": torch.tensor([[-1.0]])}
        >>> kernelwise_gap(source, target)
        tensor([1.], dtype=torch.float64)
        >>> source["last"], target["last"] = torch.ones(1, 1, 2), -torch.ones(1, 1, 2)
        >>> kernelwise_gap(source, target)
        tensor([1.], dtype=torch.float64)
    """
    return gaps_by_unit(source, target, "kernelwise").mean(dim=1)


def gaps_by_unit(source: Stack, target: Stack, kind: UnitKind) -> Tensor:
    """One minus the cosine, per restart and weight unit: what the kernelwise and layerwise gaps are means of.

    Args:
        source: Weight unit to its principal gradients, ``[restarts, *shape]``, float32.
        target: The same units, shapes and number of restarts for the other data set.
        kind: ``"kernelwise"`` leaves out units of fewer than two dimensions, unless there are no others, and the last
            of the rest in the order of both stacks, unless it is the only one.

    Returns:
        ``[restarts, units]`` in float64, units in the order of their names, in [0, 2].

    Raises:
        ValueError: If the stacks differ in layout or hold a value that is not finite.

    Example:
        >>> import torch
        >>> from pge_lightning.functional import gaps_by_unit
        >>> source = {"bias": torch.tensor([[1.0]]), "weight": torch.tensor([[[1.0, 0.0]]])}
        >>> gaps_by_unit(source, {name: -stack for name, stack in source.items()}, "layerwise")
        tensor([[2., 2.]], dtype=torch.float64)
    """
    names = common_units(source, target)
    chosen = units_of(kind, source, target)
    for name in set(names) - set(chosen):
        check_finite(name, source=source[name].sum(), target=target[name].sum())
    return torch.stack([1.0 - cosines(name, source[name], target[name]) for name in chosen], dim=1)


def spread_weights(gaps: Tensor) -> Tensor:
    r"""Weights that give each unit an equal say in a ranking: the inverse of how much its gaps vary over sources.

    Ranking by the gap with these weights is ranking by the mean over units of their standardised gaps: without them,
    the unit whose cosines happen to vary most decides alone.

    .. math:: w_u \propto 1 / 	ext{std}_s \, (	ext{mean}_k \, 	ext{gap}_{s,k,u}), \quad 	extstyle\sum_u w_u = 1

    Args:
        gaps: :func:`gaps_by_unit` of every source to one target, ``[sources, restarts, units]``.

    Returns:
        ``[units]``, which sum to one. A unit in which all sources agree gets no weight; where there are fewer than
        three sources, or no unit tells them apart, all weights are equal.

    Example:
        >>> import torch
        >>> from pge_lightning.functional import spread_weights
        >>> spread_weights(torch.tensor([[[0.1, 0.4]], [[0.2, 0.6]], [[0.3, 0.8]]], dtype=torch.float64))
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """
    spread = gaps.mean(dim=1).std(dim=0, unbiased=False)
    # What rounding alone leaves would otherwise get the largest weight.
    telling = (spread > 1e-9) & (len(gaps) > 2)
    weights = torch.where(telling, 1.0 / spread, 0.0) if telling.any() else torch.ones_like(spread)
    return weights / weights.sum()


def principal_gradient_gap(source: Stack, target: Stack, kind: Kind = "kernelwise") -> Tensor:
    """Gap between two stacks of principal gradients, by the name of its formula.

    Args:
        source: Weight unit to its principal gradients, ``[restarts, *shape]``, float32.
        target: The same units, shapes and number of restarts for the other data set.
        kind: ``"kernelwise"`` or ``"layerwise"`` (the mean of that function), ``"unit"`` or ``"published"``.

    Returns:
        Scalar in float64, at least 0 and, but for ``"published"``, at most 2; lower is more transferable.

    Raises:
        ValueError: If `kind` is unknown, or the stacks cannot be compared (see the function of that kind).

    Example:
        >>> import torch
        >>> from pge_lightning.functional import principal_gradient_gap
        >>> source = {"weight": torch.tensor([[1.0, 0.0], [1.0, 0.0]])}
        >>> target = {"weight": torch.tensor([[0.0, 2.0], [3.0, 0.0]])}
        >>> principal_gradient_gap(source, target)
        tensor(0.5000, dtype=torch.float64)
    """
    if kind not in KINDS:
        raise ValueError(f"Expected `kind` to be one of {KINDS}, but got {kind!r}.")
    if kind in ("kernelwise", "layerwise"):
        return (kernelwise_gap if kind == "kernelwise" else layerwise_gap)(source, target).mean()
    return unit_gap(source, target) if kind == "unit" else published_gap(source, target)


def left_out_gaps(source: Stack, target: Stack, kind: Kind) -> Tensor:
    """Gap of the mean gradients without each restart in turn, which is what a jackknife needs.

    Args:
        source: Weight unit to its principal gradients, ``[restarts, *shape]``, float32; at least 2 restarts.
        target: The same units, shapes and number of restarts for the other data set.
        kind: ``"unit"`` or ``"published"``, the kinds that are functions of a mean.

    Returns:
        ``[restarts]`` in float64.

    Raises:
        ValueError: If the stacks cannot be compared, or a mean over the other restarts is zero.
    """
    means, formula = mean_gradients(source, target), _unit if kind == "unit" else _published
    stacks = [(source[name].detach(), target[name].detach()) for name in sorted(source)]
    share = 1 / (len(stacks[0][0]) - 1)
    gaps = []
    for restart in range(len(stacks[0][0])):
        rows = [(s[restart], t[restart]) for s, t in stacks]
        pairs = zip(means, rows, strict=True)
        gaps.append(formula([(s + (s - row_s) * share, t + (t - row_t) * share) for (s, t), (row_s, row_t) in pairs]))
    return torch.stack(gaps)


def _published(means: list[tuple[Tensor, Tensor]]) -> Tensor:
    source_norm, target_norm = norms(means)
    return total((s - t).square().sum() for s, t in means).sqrt() / (source_norm * target_norm)


def _unit(means: list[tuple[Tensor, Tensor]]) -> Tensor:
    source_norm, target_norm = norms(means)
    # The root of 2 - 2 cos would leave 1e-8 where the directions agree; the difference itself leaves 1e-16.
    return total((s / source_norm - t / target_norm).square().sum() for s, t in means).sqrt().clamp(max=2.0)
