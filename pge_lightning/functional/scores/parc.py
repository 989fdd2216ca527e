"""PARC: do samples that lie apart have other labels?"""

from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch import Tensor

from pge_lightning.functional.scores.checks import check_features, warn_weak

__all__ = ["Ties", "parc"]

Ties: TypeAlias = Literal["published", "exact"]


def parc(features: Tensor, target: Tensor, ties: Ties = "published") -> Tensor:
    r"""Pairwise annotation representation comparison (Bolya et al. 2021, "Scalable Diverse Model Selection").

    100 times Spearman's correlation, over all pairs of samples, of two distances: one minus Pearson's correlation of
    their standardised features, and the same of their one-hot labels. Time and memory grow with the square of the
    number of samples: 5,000 samples need about 1 GB.

    The label distance has two values only, but the authors' code computes it in float64, where rounding splits pairs
    of one class into several ranks, by the number of the class and the machine's linear algebra. ``"published"`` does
    the same, for values that compare with others'; ``"exact"`` keeps ties as ties, and so does not depend on how
    classes are named.

    Args:
        features: Features of the target's samples under one source, ``[n, d]``, of any floating dtype.
        target: Class of each sample, ``[n]``, integers.
        ties: ``"published"`` or ``"exact"``.

    Returns:
        Scalar in float64, in [-100, 100], free of scale and shift of each feature; higher is more transferable.

    Raises:
        ValueError: If the inputs are none that :func:`~pge_lightning.functional.scores.checks.check_features` takes,
            a sample's standardised features are all equal, so that it correlates with nothing, or `ties` is unknown.

    Warns:
        UserWarning: If there are two features only, as these correlate by -1 or 1.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import parc
        >>> features = torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 6.0], [3.0, 1.0, 2.0], [4.0, 0.0, 3.0]])
        >>> parc(features, torch.tensor([0, 0, 1, 1]), ties="exact")
        tensor(86.6025, dtype=torch.float64)
    """
    if ties not in get_args(Ties):
        raise ValueError(f"Expected `ties` to be one of {get_args(Ties)}, but got {ties!r}.")
    features, target = check_features(features, target)
    if features.shape[1] == 2:
        warn_weak("PARC", "two features correlate by -1 or 1 only. Take wider features")
    pairs = np.triu(np.ones((len(target), len(target)), dtype=np.bool_), 1)
    apart = _feature_distances(features).cpu().numpy()[pairs]
    unlike = _label_distances(target.cpu().numpy(), ties)[pairs]
    return torch.tensor(100 * float(spearmanr(apart, unlike).statistic), dtype=torch.float64, device=features.device)


def _feature_distances(features: Tensor) -> Tensor:
    centred = features - features.mean(0)
    deviations = centred.square().mean(0).sqrt()
    constant = (features == features[:1]).all(0)
    rows = (centred / deviations).masked_fill(constant, 0)
    rows = rows - rows.mean(1, keepdim=True)
    norms = rows.norm(dim=1, keepdim=True)
    if flat := int((norms <= 1e-12).sum()):
        raise ValueError(
            f"Expected samples whose standardised features vary, but {flat} have equal ones, which correlate with "
            "nothing. Take wider features, or leave these samples out."
        )
    rows = rows / norms
    distances: Tensor = 1 - rows @ rows.T
    return distances


def _label_distances(target: npt.NDArray[np.int64], ties: Ties) -> npt.NDArray[np.float64]:
    if ties == "exact":
        return np.not_equal.outer(target, target).astype(np.float64)
    return np.subtract(1, np.corrcoef(np.eye(target.max() + 1)[target]), dtype=np.float64)
