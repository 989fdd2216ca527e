"""Leave-one-out accuracy of nearest neighbours in the source's feature space."""

import torch
from torch import Tensor

from pge_lightning.functional.scores.checks import check_features, warn_single_samples

__all__ = ["knn_accuracy"]

# Two distances of which rounding alone decides which is smaller count as equal.
ROUNDING = 1e-9
CHUNK = 1024


def knn_accuracy(features: Tensor, target: Tensor, k: int = 5) -> Tensor:
    """Share of samples whose class most of their nearest neighbours have, each sample left out in turn.

    Distances are Euclidean, in the features as they are. Neighbours at the same distance as the k-th all vote. Where
    m classes, the right one among them, have equally many votes, the sample counts as right by 1/m: that is what a
    random choice gives, and needs no order of samples or classes.

    Args:
        features: Features of the samples, ``[n, d]``, of any floating dtype.
        target: Class of each sample, ``[n]``, of any integer dtype; names of classes are free.
        k: Number of neighbours.

    Returns:
        Scalar in float64, in [0, 1]; higher is more transferable.

    Raises:
        ValueError: If features or classes cannot be scored, or there are not more than `k` samples.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import knn_accuracy
        >>> features = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [0.3]])
        >>> knn_accuracy(features, torch.tensor([0, 0, 0, 1, 1, 1]), k=1)
        tensor(0.8333, dtype=torch.float64)
    """
    features, target = check_features(features, target)
    if not 1 <= k < len(features):
        raise ValueError(
            f"Expected `k` from 1 to one less than the {len(features)} samples, but got {k}. Take fewer neighbours."
        )
    warn_single_samples("kNN accuracy", target)
    # Around the mean, squared lengths are small, and so is what rounding does to their differences.
    features = features - features.mean(dim=0)
    rows = torch.arange(len(features))
    right = [_right(features, target, rows[start : start + CHUNK], k) for start in range(0, len(rows), CHUNK)]
    return torch.cat(right).mean()


def _right(features: Tensor, target: Tensor, rows: Tensor, k: int) -> Tensor:
    """How much each of some samples counts as right."""
    lengths = features.square().sum(dim=1)
    squares = lengths[rows, None] + lengths - 2 * features[rows] @ features.T
    squares[torch.arange(len(rows)), rows] = torch.inf
    farthest = squares.kthvalue(k, dim=1, keepdim=True).values
    near = squares <= farthest + ROUNDING * (farthest.clamp_min(0) + 1e-3 * lengths.mean())
    votes = near.double() @ torch.nn.functional.one_hot(target).double()
    most = votes == votes.amax(dim=1, keepdim=True)
    return most[torch.arange(len(rows)), target[rows]].double() / most.sum(dim=1)
