"""Distances between samples: the optimal-transport data-set distance, and that of two Gaussian distributions."""

import torch
from torch import Tensor

__all__ = ["gaussian_wasserstein", "otdd"]


def gaussian_wasserstein(source_x: Tensor, target_x: Tensor) -> Tensor:
    r"""2-Wasserstein distance of two samples, as if both were drawn from Gaussian distributions (Fréchet distance).

    .. math:: W_2^2 = |\mu_s - \mu_t|^2 + \operatorname{tr}\big(\Sigma_s + \Sigma_t -
        2 (\Sigma_s^{1/2} \Sigma_t \Sigma_s^{1/2})^{1/2}\big)

    Covariances are those of the samples themselves (divided by their number): a single one is a point.

    Args:
        source_x: Samples as vectors, ``[n, d]``.
        target_x: Samples of the other data set, ``[m, d]``.

    Returns:
        Scalar in float64, at least 0, in the inputs' unit; lower is nearer.

    Raises:
        ValueError: If the samples are no vectors of one length, there are none, or a value is not finite.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.distances import gaussian_wasserstein
        >>> gaussian_wasserstein(torch.tensor([[-1.0], [1.0]]), torch.tensor([[0.0], [6.0]]))
        tensor(3.6056, dtype=torch.float64)
    """
    source, target = _vectors(source_x, target_x)
    return _squared_wasserstein(*_moments(source), *_moments(target)).sqrt()


def otdd(source_x: Tensor, source_y: Tensor, target_x: Tensor, target_y: Tensor, regularisation: float = 0.0) -> Tensor:
    r"""Optimal-transport data-set distance (Alvarez-Melis and Fusi 2020, sections 3 and 4), of order 2.

    .. math:: \Big(\min_\pi \sum_{ij} \pi_{ij} \big(|x_i - x'_j|^2 + W_2^2(\alpha_{y_i}, \alpha_{y'_j})\big)\Big)^{1/2}

    The distribution :math:`\alpha_y` of a label is that of its samples, as if drawn from a Gaussian distribution. Class
    numbers mean nothing; a class of one sample is a point.

    Args:
        source_x: Samples as vectors, ``[n, d]``.
        source_y: Their class numbers, ``[n]``.
        target_x: Samples of the other data set, ``[m, d]``.
        target_y: Their class numbers, ``[m]``.
        regularisation: Weight of the plan's entropy, as a share of the largest cost; 0 solves the problem exactly,
            which is the faster way for some hundred samples.

    Returns:
        Scalar in float64, at least 0, in the inputs' unit; lower is nearer.

    Raises:
        ImportError: If POT is not installed.
        ValueError: If shapes do not fit, there are no samples, a value is not finite, or `regularisation` is negative.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.distances import otdd
        >>> x, y = torch.tensor([[0.0], [2.0], [8.0], [10.0]]), torch.tensor([0, 0, 1, 1])
        >>> otdd(x, y, x + 3, 1 - y)
        tensor(4.2426, dtype=torch.float64)
    """
    try:
        import ot
    except ImportError as error:
        raise ImportError(
            "Expected POT (Python Optimal Transport), but it is not installed. Run "
            "`pip install 'pge-lightning[distances]'`."
        ) from error
    if not regularisation >= 0:
        raise ValueError(f"Expected `regularisation` of at least 0, but got {regularisation}.")
    source, target = _vectors(source_x, target_x)
    sides = [(source, _classes(source, source_y)), (target, _classes(target, target_y))]
    (source_moments, source_index), (target_moments, target_index) = (_by_class(*side) for side in sides)
    labels = torch.stack([
        torch.stack([_squared_wasserstein(*ours, *its) for its in target_moments]) for ours in source_moments
    ])
    cost = torch.cdist(source, target, compute_mode="donot_use_mm_for_euclid_dist").square()
    cost += labels[source_index][:, target_index]
    masses = [ot.unif(length, type_as=cost) for length in cost.shape]
    if regularisation:
        entropy = regularisation * max(float(cost.max()), 1e-300)  # any will do where nothing costs
        plan: Tensor = ot.sinkhorn(*masses, cost, entropy, method="sinkhorn_log")
    else:
        plan = ot.emd(*masses, cost)
    return (plan * cost).sum().sqrt()


def _vectors(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if source.dim() != 2 or target.dim() != 2 or source.shape[1] != target.shape[1] or not len(source) * len(target):
        raise ValueError(
            f"Expected samples `[n, d]` and `[m, d]`, at least one each, but got {list(source.shape)} and "
            f"{list(target.shape)}. Reduce both to vectors of one length."
        )
    pair = source.detach().cpu().double(), target.detach().cpu().double()
    if not all(side.isfinite().all() for side in pair):
        raise ValueError("Expected finite samples, but got nan or inf. Leave them out, or mend the inputs.")
    return pair


def _classes(samples: Tensor, labels: Tensor) -> Tensor:
    if labels.shape != samples.shape[:1]:
        raise ValueError(
            f"Expected one class number for each of {len(samples)} samples, but got shape {list(labels.shape)}."
        )
    return labels.detach().cpu()


def _by_class(samples: Tensor, labels: Tensor) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Mean and root of the covariance of each class, and the number of each sample's class in this list."""
    found: list[int] = sorted(set(labels.tolist()))
    index = torch.tensor([found.index(label) for label in labels.tolist()])
    return [_moments(samples[index == number]) for number in range(len(found))], index


def _moments(samples: Tensor) -> tuple[Tensor, Tensor]:
    """The mean ``[d]``, and ``R`` of at most ``d`` rows with ``R^T R`` the covariance."""
    mean = samples.mean(dim=0)
    rows = (samples - mean) / len(samples) ** 0.5
    if len(rows) > rows.shape[1]:
        rows = torch.linalg.qr(rows, mode="r").R
    return mean, rows


def _squared_wasserstein(mean: Tensor, root: Tensor, other_mean: Tensor, other_root: Tensor) -> Tensor:
    """The trace of the root of the covariances' product is the sum of the singular values of the roots' product."""
    spread = root.square().sum() + other_root.square().sum()
    shared = torch.linalg.svdvals(root @ other_root.T).sum()
    total: Tensor = (mean - other_mean).square().sum() + (spread - 2 * shared).clamp(min=0)
    return total
