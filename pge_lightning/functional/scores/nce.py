"""Negative conditional entropy: what the source's classes leave open about the target's."""

import torch
from torch import Tensor

from pge_lightning.functional.scores.checks import check_classes, check_labels, warn_saturated, warn_weak

__all__ = ["nce"]


def nce(source_labels: Tensor, target: Tensor) -> Tensor:
    r"""Negative conditional entropy of the target's classes given the source's (NCE).

    Tran et al. 2019, *Transferability and Hardness of Supervised Classification Tasks*, arXiv 1908.08142, section 3.

    .. math:: \text{NCE} = -H(Y|Z) = \sum_{y,z} P(y, z) \log P(y|z)

    Args:
        source_labels: Class of each sample by the source's own head, such as the most probable one, ``[n]``, of any
            integer dtype; names of classes are free.
        target: Class of each sample, ``[n]``, of any integer dtype; names of classes are free.

    Returns:
        Scalar in float64 in nats, from minus the entropy of the target's classes (which is at least :math:`-\log C`) to
        0; higher is more transferable. 0 is where the source's class tells the target's for certain.

    Raises:
        ValueError: If a shape or dtype is another, the lengths differ, or there are fewer than two target classes.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import nce
        >>> nce(torch.tensor([0, 0, 1, 1]), torch.tensor([7, 7, 7, 3]))
        tensor(-0.3466, dtype=torch.float64)
    """
    if len(source_labels) != len(target):
        raise ValueError(
            f"Expected one source label per sample, but got {len(source_labels)} for {len(target)} samples."
        )
    source, target = check_labels(source_labels, "source labels"), check_classes(target)
    classes = int(target.max()) + 1
    cells = (int(source.max()) + 1) * classes
    joint = torch.bincount(source * classes + target.to(source.device), minlength=cells).double().reshape(-1, classes)
    value = torch.xlogy(joint, joint / joint.sum(dim=1, keepdim=True)).sum().clamp(max=0.0) / len(source)
    if int(source.max()) == 0:
        warn_weak("NCE", "the source puts every sample into one class. Compare sources by LEEP, which knows how surely")
    warn_saturated("NCE", value, 0.0)
    return value
