"""LEEP for encoders without a head: clusters of the features stand in for the source's classes."""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from pge_lightning.functional.scores.checks import check_features, warn_saturated
from pge_lightning.functional.scores.leep import log_expected_prediction

__all__ = ["nleep"]

# Fewer samples per cluster and the clusters name the samples, which foretells nothing.
SAMPLES_PER_COMPONENT = 8
PER_CLASS = 5


def nleep(
    features: Tensor, target: Tensor, components: int | None = None, energy: float = 0.8, seed: int = 0
) -> Tensor:
    r"""LEEP of clusters of the features (NLEEP; Li et al. 2021, *Ranking Neural Checkpoints*, section 4).

    Principal components that hold `energy` of the variance are fitted by a mixture of Gaussians; a sample's posterior
    over the clusters takes the place of the source's prediction in :func:`~pge_lightning.functional.scores.leep`.

    Args:
        features: Features of the samples, ``[n, d]``, of any floating dtype.
        target: Class of each sample, ``[n]``, of any integer dtype; names of classes are free.
        components: Number of clusters. ``None`` takes the authors' 5 per class, but no more than one for each 8
            samples: with few labels, 5 per class would be clusters of one or two samples.
        energy: Share of the variance that is kept, in (0, 1); the authors' 0.8.
        seed: Of the mixture's start.

    Returns:
        Scalar in float64, a mean log-likelihood in nats, from minus the entropy of the target's classes (which is at
        least :math:`-\log C`) to 0; higher is more transferable. It does not depend on the order of the samples.

    Raises:
        ValueError: If features or classes cannot be scored, or `components` or `energy` is out of range.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import nleep
        >>> features = torch.tensor([[0.0], [0.1], [0.2], [0.3], [5.0], [5.1], [5.2], [5.3]])
        >>> nleep(features, torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]), components=2)
        tensor(-0.2812, dtype=torch.float64)
    """
    features, target = check_features(features, target)
    samples, classes = len(features), int(target.max()) + 1
    if components is None:
        components = max(2, min(PER_CLASS * classes, samples // SAMPLES_PER_COMPONENT))
    if not 2 <= components <= samples:
        raise ValueError(f"Expected `components` from 2 to the {samples} samples, but got {components}.")
    if not 0 < energy < 1:
        raise ValueError(f"Expected `energy` to be above 0 and below 1, but got {energy}.")
    # The mixture starts from samples drawn by their position.
    values = features.cpu().numpy()
    order = np.lexsort(values.T)
    posteriors = _posteriors(values[order], components, energy, seed)
    value = log_expected_prediction(torch.from_numpy(posteriors), target.cpu()[torch.from_numpy(order)])
    warn_saturated("NLEEP", value, 0.0)
    return value.to(features.device)


def _posteriors(features: NDArray[np.float64], components: int, energy: float, seed: int) -> NDArray[np.float64]:
    """Each sample's distribution over clusters, ``[n, components]``."""
    reduced = PCA(energy, svd_solver="full").fit_transform(features)
    # In units of the features themselves: what keeps a cluster of few samples from collapsing has none of its own.
    reduced /= np.sqrt(reduced.var(axis=0).mean())
    mixture: Any = GaussianMixture(components, covariance_type="diag", reg_covar=1e-3, random_state=seed)
    with warnings.catch_warnings():
        # The posteriors of the hundredth step serve as well as those of the last.
        warnings.simplefilter("ignore", ConvergenceWarning)
        posteriors: NDArray[np.float64] = mixture.fit(reduced).predict_proba(reduced)
    return posteriors
