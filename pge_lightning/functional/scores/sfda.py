"""Self-challenging Fisher discriminant analysis: how well classes separate once hard samples are made harder."""

import torch
from torch import Tensor

from pge_lightning.functional.scores.checks import (
    check_features,
    class_counts,
    class_means,
    warn_few_samples,
    warn_saturated,
    warn_single_samples,
)

__all__ = ["sfda"]

# The authors' constants: how fast shrinkage falls with the spread within classes, and what remains of it.
DECAY = 5.0
LEAST_SHRINKAGE = 1e-10


def sfda(features: Tensor, target: Tensor) -> Tensor:
    r"""Self-challenging Fisher discriminant score (SFDA; Shao et al. 2022, arXiv 2207.03036, section 4).

    A linear discriminant analysis gives each sample the probability of its own class. Samples are then mixed with the
    mean of the other classes, the more the less sure they are, and a second analysis must tell the mixtures apart. The
    covariance within classes, :math:`S`, is shrunk towards a multiple of the identity, by :math:`\exp(-5 \sigma)` with
    its largest eigenvalue :math:`\sigma`: the score depends on the scale of the features.

    .. math:: \text{SFDA} = \frac{1}{n} \sum_i p(y_i | x_i')

    As in the authors' code, it is the mean probability, not the mean of its logarithm.

    Args:
        features: Features of the samples, ``[n, d]``, of any floating dtype.
        target: Class of each sample, ``[n]``, of any integer dtype; names of classes are free.

    Returns:
        Scalar in float64, in (0, 1]; higher is more transferable.

    Raises:
        ValueError: If features or classes cannot be scored, or no feature varies within classes.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import sfda
        >>> sfda(torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 0, 1, 1]))
        tensor(0.5807, dtype=torch.float64)
    """
    features, target = check_features(features, target)
    warn_few_samples("SFDA", features)
    warn_single_samples("SFDA", target)
    # The analysis does not depend on where the origin lies, but its rounding does.
    features = features - features.mean(dim=0)
    covariance = _within(features, target)
    if float(covariance.trace()) <= 1e-12 * float(features.square().sum()) / len(features):
        raise ValueError("Expected features that vary within classes, but each class has the same ones throughout.")
    shrinkage = torch.exp(-DECAY * torch.linalg.eigvalsh(covariance)[-1]).clamp_min(LEAST_SHRINKAGE)
    # Softened by a second softmax, as the authors do: probabilities of a fit to few samples are too sure.
    sure = _own(_probabilities(features, target, shrinkage).softmax(dim=1), target)[:, None]
    means = class_means(features, target)
    others = (means.sum(dim=0) - means) / (len(means) - 1)
    mixed = sure * features + (1 - sure) * others[target]
    value = _own(_probabilities(mixed, target, shrinkage), target).mean()
    warn_saturated("SFDA", value, 1.0)
    return value


def _probabilities(features: Tensor, target: Tensor, shrinkage: Tensor) -> Tensor:
    """Posteriors of a linear discriminant analysis of the samples that it is fitted to, ``[n, C]``."""
    covariance, means = _within(features, target), class_means(features, target)
    scale = covariance.diagonal().mean()
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    shrunk = (1 - shrinkage) * covariance + shrinkage * scale * identity
    weights = torch.linalg.solve(shrunk, means.T)
    prior = class_counts(target).double() / len(target)
    scores: Tensor = features @ weights - 0.5 * (means.T * weights).sum(dim=0) + prior.log()
    return scores.softmax(dim=1)


def _within(features: Tensor, target: Tensor) -> Tensor:
    """Covariance within classes, ``[d, d]``."""
    residuals = features - class_means(features, target)[target]
    return residuals.T @ residuals / len(features)


def _own(probabilities: Tensor, target: Tensor) -> Tensor:
    """Each sample's probability of its own class, ``[n]``."""
    return probabilities.gather(1, target[:, None])[:, 0]
