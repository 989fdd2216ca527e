"""Log expected empirical prediction: a source's own predictions, translated to the target's classes."""

import torch
from torch import Tensor

from pge_lightning.functional.scores.checks import (
    check_classes,
    class_counts,
    class_means,
    to_double,
    warn_saturated,
    warn_weak,
)

__all__ = ["leep", "log_expected_prediction"]


def leep(probabilities: Tensor, target: Tensor) -> Tensor:
    r"""Log expected empirical prediction (LEEP; Nguyen et al. 2020, arXiv 2002.12462, section 3).

    The source's head gives :math:`\theta(x)_z` for its own classes :math:`z`; their joint distribution with the
    target's classes on these samples gives :math:`P(y|z)`, and with it a prediction of the target without training.

    .. math:: \text{LEEP} = \frac{1}{n} \sum_i \log \sum_z P(y_i|z) \, \theta(x_i)_z

    Args:
        probabilities: What the source's head predicts, ``[n, K]``, of any floating dtype; rows sum to 1.
        target: Class of each sample, ``[n]``, of any integer dtype; names of classes are free.

    Returns:
        Scalar in float64, a mean log-likelihood in nats, from minus the entropy of the target's classes (which is at
        least :math:`-\log C`) to 0; higher is more transferable. 0 is for perfect one-hot predictions.

    Raises:
        ValueError: If a shape or dtype is another, a row is not a distribution, or there are fewer than two classes.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import leep
        >>> leep(torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]), torch.tensor([7, 7, 3]))
        tensor(-0.3743, dtype=torch.float64)
    """
    probabilities = check_probabilities(probabilities, len(target))
    value = log_expected_prediction(probabilities, check_classes(target).to(probabilities.device))
    if bool((probabilities == probabilities[:1]).all()):
        warn_weak("LEEP", "the source predicts the same for every sample. Look at its checkpoint and at the inputs")
    warn_saturated("LEEP", value, 0.0)
    return value


def log_expected_prediction(probabilities: Tensor, target: Tensor) -> Tensor:
    """The formula of LEEP on checked inputs.

    Args:
        probabilities: Distributions over anything, in float64, ``[n, K]``.
        target: Classes from 0 without gaps, int64, ``[n]``.

    Returns:
        Scalar in float64, at most 0.
    """
    joint = class_means(probabilities, target) * class_counts(target)[:, None]
    # What no sample is ever predicted to be has no say.
    conditional = joint / joint.sum(dim=0).clamp_min(torch.finfo(joint.dtype).tiny)
    expected = (conditional[target] * probabilities).sum(dim=1)
    return expected.log().mean().clamp(max=0.0)


def check_probabilities(probabilities: Tensor, samples: int) -> Tensor:
    """Check that rows are distributions, and make them sum to 1 exactly.

    Args:
        probabilities: ``[n, K]``, of any floating dtype.
        samples: The number ``n`` that is expected.

    Returns:
        Distributions in float64, ``[n, K]``.

    Raises:
        ValueError: If the shape or dtype is another, a value is negative or not finite, or a row does not sum to 1.
    """
    if probabilities.ndim != 2 or len(probabilities) != samples:
        raise ValueError(
            f"Expected probabilities of shape [n, K] for {samples} samples, but got {list(probabilities.shape)}."
        )
    # Half precision keeps a sum over many classes to about a hundredth only.
    tolerance = 1e-2 if probabilities.dtype.itemsize == 2 else 1e-4
    values = to_double(probabilities, "probabilities")
    total = values.sum(dim=1, keepdim=True)
    if bool((values < 0).any()) or bool(((total - 1).abs() > tolerance).any()):
        raise ValueError(
            "Expected rows of probabilities, at least 0 and summing to 1, but got values from "
            f"{float(values.min()):.4g} and sums from {float(total.min()):.4g} to {float(total.max()):.4g}. "
            "Pass logits through a softmax."
        )
    return values / total
