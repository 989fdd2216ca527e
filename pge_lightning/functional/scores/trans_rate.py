"""TransRate: by how much fewer bits code the features once their classes are known."""

import torch
from torch import Tensor

from pge_lightning.functional.scores.checks import (
    check_features,
    class_counts,
    warn_few_samples,
    warn_single_samples,
)

__all__ = ["trans_rate"]


def trans_rate(features: Tensor, target: Tensor, distortion: float = 1e-4) -> Tensor:
    r"""TransRate of features for classes (Huang et al. 2022, "Frustratingly Easy Transferability Estimation").

    .. math:: R(Z) - \frac{1}{C} \sum_c R(Z_c), \quad R(Z) = \frac12 \log\det(I + Z^\top Z / (n \epsilon))

    with the features centred over all samples, as they are otherwise, and each class weighing the same. It depends on
    the features' scale.

    Args:
        features: Features of the target's samples under one source, ``[n, d]``, of any floating dtype.
        target: Class of each sample, ``[n]``, integers.
        distortion: The distortion :math:`\epsilon` that the code allows, in squared units of the features.

    Returns:
        Scalar in float64, in nats; at least 0 where classes have equally many samples, unbounded above; higher is more
        transferable.

    Raises:
        ValueError: If the inputs are none that :func:`~pge_lightning.functional.scores.checks.check_features` takes,
            or `distortion` is not above 0.

    Warns:
        UserWarning: If there are no more samples than features, or a class has a single sample.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import trans_rate
        >>> features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 1.0], [4.0, 1.0]])
        >>> trans_rate(features, torch.tensor([0, 0, 1, 1]))
        tensor(0.6523, dtype=torch.float64)
    """
    if not distortion > 0:
        raise ValueError(f"Expected `distortion` to be above 0, but got {distortion}.")
    features, target = check_features(features, target)
    warn_few_samples("TransRate", features)
    warn_single_samples("TransRate", target)
    centred = features - features.mean(0)
    classes = torch.split(centred[target.argsort()], class_counts(target).tolist())
    rates = torch.stack([_rate(samples, distortion) for samples in classes])
    return _rate(centred, distortion) - rates.mean()


def _rate(samples: Tensor, distortion: float) -> Tensor:
    count, width = samples.shape
    gram = samples.T @ samples if count > width else samples @ samples.T
    gram /= count * distortion
    gram.diagonal().add_(1)
    factor: Tensor = torch.linalg.cholesky(gram)
    return factor.diagonal().log().sum()
