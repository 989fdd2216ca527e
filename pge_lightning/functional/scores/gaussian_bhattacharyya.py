"""GBC: how much the classes overlap, each taken as a Gaussian."""

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from pge_lightning.functional.scores.checks import (
    check_features,
    class_counts,
    class_means,
    warn_single_samples,
    warn_weak,
)

__all__ = ["Covariance", "gaussian_bhattacharyya"]

Covariance: TypeAlias = Literal["spherical", "diagonal"]

FLOOR = 1e-4


def gaussian_bhattacharyya(features: Tensor, target: Tensor, covariance: Covariance = "spherical") -> Tensor:
    r"""Gaussian Bhattacharyya coefficient of the classes (Pándy et al. 2022, arXiv 2111.12780).

    .. math:: -\sum_{i \ne j} \exp(-D_{ij}), \quad D_{ij} = \frac18 \sum_k \frac{(\mu_{ik} - \mu_{jk})^2}{\sigma^2_k}
        + \frac12 \sum_k \log \frac{\sigma^2_k}{\sigma_{ik} \sigma_{jk}}, \quad
        \sigma^2 = \frac{\sigma_i^2 + \sigma_j^2}{2}

    over ordered pairs of classes, with variances that divide by a class's number of samples and are at least 1e-4. A
    spherical class has their mean; as in the authors' code its logarithm counts once and not for each feature. The
    score depends on the features' scale only where the floor is reached.

    Args:
        features: Features of the target's samples under one source, ``[n, d]``, of any floating dtype.
        target: Class of each sample, ``[n]``, integers.
        covariance: ``"spherical"`` or ``"diagonal"``.

    Returns:
        Scalar in float64, in [-C (C - 1), 0] for C classes, without unit; higher is more transferable.

    Raises:
        ValueError: If the inputs are none that :func:`~pge_lightning.functional.scores.checks.check_features` takes,
            or `covariance` is unknown.

    Warns:
        UserWarning: If a class has a single sample, all variances are at the floor, or no two classes overlap in
            float64.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import gaussian_bhattacharyya
        >>> features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 1.0], [4.0, 1.0]])
        >>> gaussian_bhattacharyya(features, torch.tensor([0, 0, 1, 1]))
        tensor(-0.0041, dtype=torch.float64)
    """
    if covariance not in get_args(Covariance):
        raise ValueError(f"Expected `covariance` to be one of {get_args(Covariance)}, but got {covariance!r}.")
    features, target = check_features(features, target)
    warn_single_samples("GBC", target)
    means = class_means(features, target)
    variances = _variances(features, target, means)
    if bool((variances == FLOOR).all()):
        warn_weak("GBC", f"the variances within classes are all below its floor {FLOOR:g}. Scale the features")
    if covariance == "spherical":
        variances = variances.mean(1, keepdim=True)
    overlaps = torch.stack([_overlaps(number, means, variances) for number in range(len(means))])
    value = -overlaps.fill_diagonal_(0).sum()
    if value == 0:
        warn_weak("GBC", "no two classes overlap, so that it cannot tell sources apart. Reduce the features")
    return value


def _variances(features: Tensor, target: Tensor, means: Tensor) -> Tensor:
    deviations = (features - means[target]).square()
    sums = torch.zeros_like(means).index_add_(0, target, deviations)
    return (sums / class_counts(target)[:, None]).clamp(min=FLOOR)


def _overlaps(number: int, means: Tensor, variances: Tensor) -> Tensor:
    """Bhattacharyya coefficients of one class with all, ``[C]``."""
    middle = (variances[number] + variances) / 2
    apart = ((means[number] - means).square() / middle).sum(1) / 8
    unlike = (middle.log() - (variances[number].log() + variances.log()) / 2).sum(1) / 2
    return (-apart - unlike).exp().clamp(max=1)
