"""PACTran-Gaussian: a PAC-Bayes bound on the error of a linear classifier on the source's features."""

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pge_lightning.functional.scores.checks import check_features, warn_few_samples

__all__ = ["pactran"]


def pactran(features: Tensor, target: Tensor, strength: float = 1.0, variance: float = 10.0) -> Tensor:
    r"""Negative PACTran-Gaussian metric (Ding et al. 2022, arXiv 2203.05126, section 3).

    A softmax regression :math:`\theta^*` on centred features minimises the mean cross-entropy plus
    :math:`|w|^2 / (2 a n)`. Around it, with a Gaussian prior of variance :math:`\sigma_0^2 = s / d` and a Gaussian
    posterior of the best common variance, the PAC-Bayes bound is, but for a constant,

    .. math:: L(\theta^*) + \frac{|w^*|^2}{2 a n} + \frac{C s}{2 a n} \log\Big(1 + \frac{a n}{C d} \text{tr} H\Big)

    with the Hessian :math:`H` of the mean cross-entropy with respect to :math:`w`. The score is minus the bound.

    Args:
        features: Features of the samples, ``[n, d]``, of any floating dtype.
        target: Class of each sample, ``[n]``, of any integer dtype; names of classes are free.
        strength: The factor :math:`a`; a larger one fits the samples more closely. The authors use 0.1, 1 and 10.
        variance: The factor :math:`s`; the authors use 10 and 100 times `strength`.

    Returns:
        Scalar in float64, minus a bound in nats, below 0; higher is more transferable.

    Raises:
        ValueError: If features or classes cannot be scored, or `strength` or `variance` is not above 0.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import pactran
        >>> pactran(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1, 1]), variance=1.0)
        tensor(-0.4943, dtype=torch.float64)
    """
    features, target = check_features(features, target)
    if not strength > 0 or not variance > 0:
        raise ValueError(f"Expected `strength` and `variance` above 0, but got {strength} and {variance}.")
    warn_few_samples("PACTran", features)
    features = features - features.mean(dim=0)
    samples, width = features.shape
    weights, bias = _softmax_regression(features, target, strength)
    logs = (features @ weights.T + bias).log_softmax(dim=1)
    fit = -logs.gather(1, target[:, None]).mean() + weights.square().sum() / (2 * strength * samples)
    probabilities = logs.exp()
    curvature = features.square().sum(dim=1) @ (probabilities * (1 - probabilities)).sum(dim=1) / samples
    freedom = len(weights) * width
    spread = len(weights) * variance / (2 * strength * samples)
    return -(fit + spread * torch.log1p(strength * samples / freedom * curvature))


def _softmax_regression(features: Tensor, target: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Weights ``[C, d]`` and biases ``[C]`` with one row per class, two classes included."""
    two = int(target.max()) == 1
    # Of two classes scikit-learn keeps the difference of the rows only, whose penalty is half as large.
    model = LogisticRegression(C=strength * (2 if two else 1), tol=1e-8, max_iter=10_000)
    model.fit(features.cpu().numpy(), target.cpu().numpy())
    weights, bias = torch.from_numpy(model.coef_).to(features), torch.from_numpy(model.intercept_).to(features)
    return (torch.cat([-weights, weights]) / 2, torch.cat([-bias, bias]) / 2) if two else (weights, bias)
