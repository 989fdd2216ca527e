"""H-score: how much of the features' variance, after whitening, lies between classes."""

import torch
from torch import Tensor

from pge_lightning.functional.scores.checks import (
    check_features,
    class_counts,
    warn_few_samples,
    warn_saturated,
    warn_weak,
)

__all__ = ["h_score", "regularized_h_score"]

LEAST_PIVOT = 1e-8


def h_score(features: Tensor, target: Tensor) -> Tensor:
    r"""H-score of features for classes (Bao et al. 2019, "An Information-Theoretic Approach to Transferability").

    .. math:: H = \operatorname{tr}(\Sigma^{+} \Sigma_B)

    with the covariance of the features and that of their class means. It is the part of the normalised classes that a
    linear function of the features explains, so that no invertible linear map of the features changes it. By chance
    alone it is ``(C - 1) d / (n - 1)``: compare sources of equal width, or take :func:`regularized_h_score`.

    Args:
        features: Features of the target's samples under one source, ``[n, d]``, of any floating dtype.
        target: Class of each sample, ``[n]``, integers.

    Returns:
        Scalar in float64, in [0, C - 1] for C classes, free of the features' scale; higher is more transferable.

    Raises:
        ValueError: If the inputs are none that :func:`~pge_lightning.functional.scores.checks.check_features` takes,
            or the samples, centred, are linearly independent, as the score then is C - 1 whatever the classes.

    Warns:
        UserWarning: If there are no more samples than features, or the score is at its bound.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import h_score
        >>> features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 1.0], [4.0, 1.0]])
        >>> h_score(features, torch.tensor([0, 0, 1, 1]))
        tensor(0.9615, dtype=torch.float64)
    """
    features, target = check_features(features, target)
    centred = _centre(features[:, (features != features[0]).any(0)])
    scaled = centred / centred.norm(dim=0)
    warn_few_samples("H-score", features)
    if len(scaled) > scaled.shape[1] + 1:
        value = _explained(scaled.T @ scaled, _between(scaled, target))
    else:
        value = _projected(scaled, target)
    bound = int(target.max())
    warn_saturated("H-score", value, bound)
    return value.clamp(max=bound)


def regularized_h_score(features: Tensor, target: Tensor) -> Tensor:
    r"""H-score with a covariance shrunk after Ledoit and Wolf (Ibrahim et al. 2021, "Newer is not always better").

    .. math:: H_\alpha = \operatorname{tr}\big(((1 - \alpha) \Sigma + \alpha \mu I)^{-1} (1 - \alpha) \Sigma_B\big)

    where :math:`\mu` is the mean variance and :math:`\alpha` the shrinkage of Ledoit and Wolf (2004). As in the
    authors' code the covariance divides by n, that of the class means by n - 1. The shrinkage also keeps the score
    apart from its bound where samples are few, at the price that the features' scales now matter.

    Args:
        features: Features of the target's samples under one source, ``[n, d]``, of any floating dtype.
        target: Class of each sample, ``[n]``, integers.

    Returns:
        Scalar in float64, in [0, (C - 1) n / (n - 1)] for C classes, free of a scale common to all features; higher is
        more transferable.

    Raises:
        ValueError: If the inputs are none that :func:`~pge_lightning.functional.scores.checks.check_features` takes.

    Warns:
        UserWarning: If the covariance is shrunk completely, so that the score is 0 whatever the classes.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import regularized_h_score
        >>> features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 1.0], [4.0, 1.0]])
        >>> regularized_h_score(features, torch.tensor([0, 0, 1, 1]))
        tensor(1.0556, dtype=torch.float64)
    """
    features, target = check_features(features, target)
    centred = _centre(features)
    samples, width = centred.shape
    covariance = centred.T @ centred / samples
    variance = covariance.trace() / width
    shrinkage = _shrinkage(centred, covariance)
    kept = 1 - shrinkage
    if kept == 0:
        warn_weak("The regularised H-score", "the covariance is shrunk completely. Take more samples")
        return kept
    shrunk = kept * covariance
    shrunk.diagonal().add_(shrinkage * variance)
    value = kept * _explained(shrunk, _between(centred, target)) / (samples - 1)
    return value.clamp(max=int(target.max()) * samples / (samples - 1))


def _centre(features: Tensor) -> Tensor:
    return features - features.mean(0)


def _between(centred: Tensor, target: Tensor) -> Tensor:
    counts = class_counts(target)
    sums = centred.new_zeros(len(counts), centred.shape[1]).index_add_(0, target, centred)
    return sums / counts[:, None].double().sqrt()


def _explained(gram: Tensor, rows: Tensor) -> Tensor:
    """Sum over `rows` ``[k, d]`` of their squares under the pseudo-inverse of `gram` ``[d, d]``."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivots = factor.diagonal().square() / gram.diagonal()
    if not failed and pivots.min() > LEAST_PIVOT:
        whitened: Tensor = torch.linalg.solve_triangular(factor, rows.T, upper=False)
    else:
        values, vectors = torch.linalg.eigh(gram)
        kept = _not_null(values, len(gram))
        whitened = rows @ vectors[:, kept] / values[kept].sqrt()
    return whitened.square().sum()


def _projected(scaled: Tensor, target: Tensor) -> Tensor:
    """The same for few samples, by the directions of the samples that the features reach."""
    samples, width = scaled.shape
    values, vectors = torch.linalg.eigh(scaled @ scaled.T)
    reached = vectors[:, _not_null(values, max(samples, width))]
    if reached.shape[1] == samples - 1:
        raise ValueError(
            f"Expected more samples than features, but got {samples} samples and {width} features, which tell all "
            "samples apart whatever their classes. Take more samples, or the regularised H-score."
        )
    return _between(reached, target).square().sum()


def _not_null(values: Tensor, size: int) -> Tensor:
    return values > values[-1] * size * torch.finfo(values.dtype).eps


def _shrinkage(centred: Tensor, covariance: Tensor) -> Tensor:
    """Shrinkage of Ledoit and Wolf: spread of the samples' own covariances over distance to a multiple of one."""
    samples, width = centred.shape
    size = covariance.square().sum()
    distance = size - covariance.trace().square() / width
    spread = (centred.square().sum(1).square().mean() - size) / samples
    return (spread / distance).clamp(0, 1) if min(spread, distance) > 0 else torch.zeros_like(size)
