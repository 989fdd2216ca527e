"""Task2Vec: a data set as the diagonal Fisher information of a fixed network's filters (Achille et al. 2019)."""

import torch
from torch import Tensor

from pge_lightning.functional.stack import Stack, check_finite, common_units

__all__ = ["task2vec_distance", "task2vec_distances", "task2vec_embedding"]

ALPHA = 0.15


def task2vec_embedding(units: Stack) -> Tensor:
    r"""The Fisher information of each filter: the mean over its weights (Achille et al. 2019, section 2).

    Filters are the rows of units of two or more dimensions. Vectors, such as biases and the scales of norms, are left
    out, unless there is nothing else.

    Args:
        units: Weight unit to the diagonal of its Fisher information, ``[restarts, *shape]``, at least 0, as in a
            signature of a probe with ``statistic="fisher"``.

    Returns:
        ``[restarts, filters]`` in float64, at least 0; the units stand in the order of their names.

    Raises:
        ValueError: If there is no unit, a value is negative or not finite, or numbers of restarts differ.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.distances import task2vec_embedding
        >>> task2vec_embedding({"weight": torch.tensor([[[1.0, 3.0], [4.0, 4.0]]]), "bias": torch.ones(1, 2)})
        tensor([[2., 4.]], dtype=torch.float64)
    """
    return torch.cat(_filters(units), dim=1)


def task2vec_distances(
    source: Stack, target: Stack, asymmetric: bool = True, alpha: float = ALPHA, trivial: Stack | None = None
) -> Tensor:
    """The distance of each restart; see :func:`task2vec_distance`.

    Args:
        source: Weight unit to the diagonal of its Fisher information, ``[restarts, *shape]``.
        target: The same units, shapes and number of restarts for the other data set.
        asymmetric: Whether the source's distance from the trivial task is taken off.
        alpha: How much of it.
        trivial: The Fisher information of the trivial task.

    Returns:
        ``[restarts]`` in float64.
    """
    common_units(source, target)
    ours, its = _filters(source), _filters(target)
    distance = _normalised(ours, its)
    if not asymmetric:
        return distance
    if trivial is not None:
        common_units(source, trivial)
    # What a task would ask that knows no filter from another.
    level = [part.mean(1, keepdim=True).expand_as(part) for part in ours] if trivial is None else _filters(trivial)
    return distance - alpha * _normalised(ours, level)


def task2vec_distance(
    source: Stack, target: Stack, asymmetric: bool = True, alpha: float = ALPHA, trivial: Stack | None = None
) -> Tensor:
    r"""Task2Vec distance from a source to a target, mean over restarts (Achille et al. 2019, section 4).

    .. math::
        d(a \to b) = d_\text{sym}(a, b) - \alpha \, d_\text{sym}(a, 0), \quad
        d_\text{sym}(a, b) = 1 - \cos\Big(\frac{F_a}{F_a + F_b}, \frac{F_b}{F_a + F_b}\Big)

    ``F`` is the Fisher information of each filter, :func:`task2vec_embedding`. Filters of no information for both data
    sets have no say. Taking off the distance of the source from a trivial task brings sources that ask more of the
    network nearer.

    Args:
        source: Weight unit to the diagonal of its Fisher information, ``[restarts, *shape]``, at least 0.
        target: The same units, shapes and number of restarts for the other data set.
        asymmetric: Whether the second term counts; without it the distance is symmetric.
        alpha: Weight of the second term; 0.15 is the value of the paper.
        trivial: The Fisher information of the trivial task, units like the source's. By default every filter has the
            mean information of the source's filters in its unit, so that only differences between filters tell.

    Returns:
        Scalar in float64, in [0, 1] where symmetric, else in [-alpha, 1] (for `alpha` of at least 0); lower is more
        transferable.

    Raises:
        ValueError: If the stacks differ in layout, a value is negative or not finite, or a restart of both sides holds
            no information at all.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.distances import task2vec_distance
        >>> source, target = {"weight": torch.tensor([[[1.0], [0.0]]])}, {"weight": torch.tensor([[[1.0], [2.0]]])}
        >>> task2vec_distance(source, target, asymmetric=False)
        tensor(0.5528, dtype=torch.float64)
    """
    return task2vec_distances(source, target, asymmetric, alpha, trivial).mean()


def _filters(units: Stack) -> list[Tensor]:
    """Unit by unit, the mean over the weights of each filter, ``[restarts, filters]``."""
    names = [name for name in common_units(units, units) if units[name].dim() > 2] or sorted(units)
    parts = []
    for name in names:
        part = units[name].detach().double().unsqueeze(-1).flatten(2 if units[name].dim() > 1 else 1).mean(-1)
        check_finite(name, source=part)
        if (part < 0).any():
            raise ValueError(
                f"Expected Fisher information of at least 0, but unit '{name}' holds less. "
                'Collect the signatures with a probe of `statistic="fisher"`, such as "task2vec".'
            )
        parts.append(part.reshape(len(part), -1))
    return parts


def _normalised(source: list[Tensor], target: list[Tensor]) -> Tensor:
    """One minus the cosine of the two shares in each filter's information, ``[restarts]``."""
    ours, its = torch.cat(source, dim=1), torch.cat(target, dim=1)
    both = ours + its
    if not (both > 0).any(dim=1).all():
        raise ValueError(
            "Expected Fisher information above 0 in some filter, but there is none on both sides. "
            "Collect signatures with a loss that reaches the encoder."
        )
    shares = [torch.where(both > 0, side / both, 0.0) for side in (ours, its)]
    dot, source_square, target_square = (
        (a * b).sum(dim=1) for a, b in ((shares[0], shares[1]), (shares[0], shares[0]), (shares[1], shares[1]))
    )
    squares = (source_square * target_square).sqrt()
    return (1 - torch.where(squares > 0, dot / squares, 0.0)).clamp(0.0, 1.0)
