"""Which samples of a split are used, and under which class numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["check_part", "class_table", "draw_per_class", "draw_total", "part_slice", "renumber", "shuffled"]


def shuffled(count: int, seed: int) -> Tensor:
    """Shuffle the numbers from 0 to ``count - 1``.

    Args:
        count: How many numbers.
        seed: Stands for one order, the same on every machine.

    Returns:
        int64 ``[count]``.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def check_part(part: Sequence[float]) -> tuple[float, float]:
    """Read a part of a split as a pair of fractions.

    Args:
        part: Where the part begins and ends, ``0 <= begin < end <= 1``.

    Returns:
        Begin and end.

    Raises:
        ValueError: If these are not two fractions in ascending order.
    """
    values = tuple(float(value) for value in part)
    if len(values) != 2 or not 0 <= values[0] < values[1] <= 1:
        raise ValueError(f"Expected `part` to be two ascending fractions such as [0.0, 0.5], but got {list(values)}.")
    return values[0], values[1]


def part_slice(count: int, part: tuple[float, float]) -> slice:
    """The positions of a part in stored order; parts that meet at a fraction share no sample.

    Args:
        count: Number of samples in the split.
        part: Begin and end as fractions.

    Returns:
        A slice of positions.

    Raises:
        ValueError: If the part holds no sample.

    Example:
        >>> part_slice(5, (0.0, 0.5)), part_slice(5, (0.5, 1.0))
        (slice(0, 2, None), slice(2, 5, None))
    """
    begin, end = (round(fraction * count) for fraction in part)
    if begin == end:
        raise ValueError(f"Expected `part` to hold samples, but {list(part)} of {count} holds none. Widen it.")
    return slice(begin, end)


def class_table(num_classes: int, classes: Sequence[int] | None, seed: int | None) -> Tensor:
    """New number of every original class.

    Args:
        num_classes: Number of original classes.
        classes: Original classes to keep, renumbered in this order; ``None`` keeps all.
        seed: Seed of a random renumbering of the classes kept; ``None`` leaves them in order.

    Returns:
        int64 ``[num_classes]``; -1 for classes that are left out.

    Raises:
        ValueError: If ``classes`` names fewer than two classes, one twice, or one that is not there.

    Example:
        >>> class_table(4, [3, 1], None).tolist()
        [-1, 1, -1, 0]
    """
    kept = list(range(num_classes)) if classes is None else [int(label) for label in classes]
    if len(kept) < 2 or len(set(kept)) < len(kept) or not all(0 <= label < num_classes for label in kept):
        raise ValueError(
            f"Expected `classes` to be two or more different classes from 0 to {num_classes - 1}, but got {kept}."
        )
    numbers = torch.arange(len(kept)) if seed is None else shuffled(len(kept), seed)
    table = torch.full((num_classes,), -1)
    table[kept] = numbers
    return table


def renumber(x: Tensor, y: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Give labels their new numbers and drop the samples of classes that are left out.

    Args:
        x: Samples, ``[samples, ...]``.
        y: Original labels, int64 ``[samples]``.
        table: What ``class_table`` made.

    Returns:
        The samples kept and their new labels.
    """
    labels = table[y]
    return x[labels >= 0], labels[labels >= 0]


def draw_total(y: Tensor, count: int, draw: int) -> Tensor:
    """Positions of a fixed random draw of samples; a smaller draw is the beginning of a larger one.

    Args:
        y: Labels, int64 ``[samples]``.
        count: Samples to draw.
        draw: Which draw.

    Returns:
        int64 ``[count]``.

    Raises:
        ValueError: If there are fewer samples than asked for.
    """
    if count > len(y):
        raise ValueError(f"Expected `labels` to be at most the {len(y)} training samples there are, but got {count}.")
    return shuffled(len(y), draw)[:count]


def draw_per_class(y: Tensor, count: int, draw: int) -> Tensor:
    """Positions of a fixed random draw per class; the numbering of the classes does not change it.

    Args:
        y: Labels, int64 ``[samples]``.
        count: Samples per class; a smaller class gives all it has.
        draw: Which draw.

    Returns:
        int64 positions, in random order.

    Raises:
        ValueError: If no class has as many samples.

    Example:
        >>> y = torch.tensor([0, 0, 0, 1, 1, 1, 2])
        >>> y[draw_per_class(y, 2, draw=0)].sort().values.tolist()
        [0, 0, 1, 1, 2]
    """
    largest = int(torch.bincount(y).max())
    if count > largest:
        raise ValueError(
            f"Expected `labels_per_class` to be at most {largest}, the size of the largest class, but got {count}."
        )
    order = shuffled(len(y), draw)
    rank = F.one_hot(y[order]).cumsum(0).gather(1, y[order].unsqueeze(1)).squeeze(1)
    return order[rank <= count]
