"""LogME: logarithm of the maximum evidence of a linear model on the features."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pge_lightning.functional.scores.checks import check_features, check_values, to_double, warn_few_samples

__all__ = ["log_me"]

GUARD = 1e-5  # the published form adds it to both sums of squares


class _Spectrum(NamedTuple):
    squares: Tensor  # squared singular values of the features, [r, 1]
    powers: Tensor  # squared projections of targets on them, times the squared singular value, [r, k]
    energies: Tensor  # squared norms of the targets, [k]
    samples: int


class _Fit(NamedTuple):
    weight: Tensor  # precision of the prior on weights, [k]
    noise: Tensor  # precision of the noise, [k]
    squared_weights: Tensor  # [k]
    squared_residuals: Tensor  # [k]


def log_me(features: Tensor, target: Tensor, iterations: int = 1000, tolerance: float = 1e-3) -> Tensor:
    r"""LogME of features for classes or real targets (You et al. 2021, "LogME", and its fixed-point form of 2022).

    For each column y of the targets, a class against the rest, the evidence of Bayesian linear regression at its
    maximum over the precisions of weights and noise, per sample:

    .. math:: \frac{1}{n} \max_{\alpha, \beta} \log p(y \mid F, \alpha, \beta)

    and of these the mean over columns. The maximum is sought by the fixed-point iteration of the authors' code, with
    its start (both precisions 1) and tolerance. Theirs gives up after 11 iterations, short of the maximum where
    features say little of a column; `iterations=11` does the same. No rotation of the features changes the score; nor
    does their scale, until the fitted weights' squares come near the 1e-5 that the published iteration adds to both
    sums of squares. The cost is that of one eigendecomposition, whatever the number of columns.

    Args:
        features: Features of the target's samples under one source, ``[n, d]``, of any floating dtype.
        target: Class of each sample, ``[n]``, integers; or real targets, ``[n]`` or ``[n, k]``, of a floating dtype.
        iterations: Greatest number of iterations.
        tolerance: Relative change of the ratio of both precisions at which the iteration stops.

    Returns:
        Scalar in float64, in nats per sample, unbounded; higher is more transferable.

    Raises:
        ValueError: If the inputs are none that :func:`~pge_lightning.functional.scores.checks.check_features` takes,
            a column of real targets is constant, or `iterations` is less than 1.

    Warns:
        UserWarning: If there are no more samples than features.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import log_me
        >>> features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 1.0], [4.0, 1.0]])
        >>> log_me(features, torch.tensor([0, 0, 1, 1]))
        tensor(-0.7116, dtype=torch.float64)
        >>> log_me(features, torch.tensor([0.1, 0.9, 3.2, 3.8]))
        tensor(-0.8051, dtype=torch.float64)
    """
    if iterations < 1:
        raise ValueError(f"Expected `iterations` to be at least 1, but got {iterations}.")
    features, columns = _check(features, target)
    warn_few_samples("LogME", features)
    spectrum = _decompose(features, columns)
    return _evidence(spectrum, _fit(spectrum, iterations, tolerance)).mean() / len(features)


def _check(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if not target.is_floating_point():
        features, target = check_features(features, target)
        return features, torch.nn.functional.one_hot(target).double()
    if target.ndim not in {1, 2} or not target.numel():
        raise ValueError(f"Expected real targets of shape [n] or [n, k], but got {list(target.shape)}.")
    features = check_values(features, len(target))
    columns = to_double(target.reshape(len(target), -1), "targets").to(features.device)
    if bool((columns == columns[:1]).all(0).any()):
        raise ValueError("Expected real targets that vary over samples, but a column is constant.")
    return features, columns


def _decompose(features: Tensor, columns: Tensor) -> _Spectrum:
    samples, width = features.shape
    if samples > width:
        squares, vectors = torch.linalg.eigh(features.T @ features)
        powers = (vectors.T @ (features.T @ columns)).square()
        squares = squares.clamp(min=0)
    else:
        squares, vectors = torch.linalg.eigh(features @ features.T)
        squares = squares.clamp(min=0)
        powers = squares[:, None] * (vectors.T @ columns).square()
    return _Spectrum(squares[:, None], powers, columns.square().sum(0), samples)


def _fit(spectrum: _Spectrum, iterations: int, tolerance: float) -> _Fit:
    squares, powers, energies, samples = spectrum
    ones = torch.ones_like(energies)
    fit = _Fit(ones, ones, ones, ones)
    running = ones.bool()
    for _ in range(iterations):
        ratio = fit.weight / fit.noise
        shifted = squares + ratio
        used = (squares / shifted).sum(0)
        squared_weights = (powers / shifted.square()).sum(0)
        explained = (powers * (shifted + ratio) / shifted.square()).sum(0)
        squared_residuals = (energies - explained).clamp(min=0)
        weight = used / (squared_weights + GUARD)
        noise = (samples - used) / (squared_residuals + GUARD)
        step = _Fit(weight, noise, squared_weights, squared_residuals)
        fit = _Fit(*(torch.where(running, new, old) for new, old in zip(step, fit, strict=True)))
        running = running & ((weight / noise - ratio).abs() > tolerance * ratio)
    return fit


def _evidence(spectrum: _Spectrum, fit: _Fit) -> Tensor:
    rank = len(spectrum.squares)  # directions that no sample reaches keep their prior, and cancel
    determinant = (fit.weight + fit.noise * spectrum.squares).log().sum(0)
    parameters = rank * fit.weight.log() - determinant - fit.weight * fit.squared_weights
    data = spectrum.samples * (fit.noise.log() - math.log(2 * math.pi)) - fit.noise * fit.squared_residuals
    return (parameters + data) / 2
