"""What every feature score asks of its inputs, and how it says that a value is weak."""

import warnings

import torch
from torch import Tensor

__all__ = [
    "check_classes",
    "check_features",
    "check_labels",
    "class_counts",
    "class_means",
    "warn_few_samples",
    "warn_saturated",
    "warn_single_samples",
    "warn_weak",
]


def check_features(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Check features with classes and bring them to the form in which scores work.

    Args:
        features: Features of the samples, ``[n, d]``, of any floating dtype, on any device.
        target: Class of each sample, ``[n]``, of any integer dtype; names of classes are free.

    Returns:
        Features in float64, ``[n, d]``, detached, and classes renumbered from 0 without gaps, int64, ``[n]``.

    Raises:
        ValueError: If a shape or dtype is another, a feature is not finite, every feature is constant, there are fewer
            than two classes, or every class has a single sample, so that nothing is known about its spread.
    """
    features = check_values(features, len(target))
    return features, check_classes(target).to(features.device)


def check_values(features: Tensor, samples: int) -> Tensor:
    """Check features alone.

    Args:
        features: Features of the samples, ``[n, d]``, of any floating dtype, on any device.
        samples: The number ``n`` that is expected.

    Returns:
        Features in float64, ``[n, d]``, detached.

    Raises:
        ValueError: If the shape or dtype is another, a feature is not finite, or every feature is constant.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise ValueError(f"Expected features of shape [n, d], but got {list(features.shape)}. Flatten them first.")
    if len(features) != samples:
        raise ValueError(f"Expected one target per sample, but got {len(features)} samples and {samples} targets.")
    features = to_double(features, "features")
    if bool((features == features[:1]).all()):
        raise ValueError("Expected features that vary over samples, but every feature is constant.")
    return features


def to_double(values: Tensor, name: str) -> Tensor:
    """Detached values in float64.

    Args:
        values: Tensor of any floating dtype and shape, on any device.
        name: What the values are, for the error.

    Returns:
        The values in float64, on their device, or on the CPU where the device knows no float64.

    Raises:
        ValueError: If the dtype is no floating one, or a value is not finite.
    """
    if not values.is_floating_point():
        raise ValueError(f"Expected {name} of a floating dtype, but got {values.dtype}. Convert them with `.float()`.")
    if not bool(values.isfinite().all()):
        count = int((~values.isfinite()).sum())
        raise ValueError(f"Expected finite {name}, but got {count} values that are NaN or infinite.")
    device = torch.device("cpu") if values.device.type == "mps" else values.device
    return values.detach().to(device).double()


def check_classes(target: Tensor) -> Tensor:
    """Check the target's classes.

    Args:
        target: Class of each sample, ``[n]``, of any integer dtype; names of classes are free.

    Returns:
        Classes renumbered from 0 without gaps, in the order of their names, int64, ``[n]``.

    Raises:
        ValueError: If the shape or dtype is another, there are fewer than two classes, or every class has a single
            sample.
    """
    target = check_labels(target, "target")
    classes = int(target.max()) + 1 if len(target) else 0
    if classes < 2:
        raise ValueError(f"Expected at least two classes in the target, but got {classes}.")
    if classes == len(target):
        raise ValueError(f"Expected a class with two samples, but each of the {classes} classes has a single one.")
    return target


def check_labels(labels: Tensor, name: str) -> Tensor:
    """Check labels of which there may be any number of classes, a single one included.

    Args:
        labels: Label of each sample, ``[n]``, of any integer dtype; names are free.
        name: What the labels are, for the error.

    Returns:
        Labels renumbered from 0 without gaps, in the order of their names, int64, ``[n]``.

    Raises:
        ValueError: If the shape is another or the dtype is no integer one.
    """
    if labels.ndim != 1:
        raise ValueError(f"Expected {name} of shape [n], but got {list(labels.shape)}.")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"Expected {name} of an integer dtype, one class per sample, but got {labels.dtype}.")
    numbers: Tensor = torch.unique(labels.detach(), return_inverse=True)[1]
    return numbers


def class_counts(target: Tensor) -> Tensor:
    """Samples per class.

    Args:
        target: Classes from 0 without gaps, int64, ``[n]``.

    Returns:
        Counts, int64, ``[C]``.
    """
    return torch.bincount(target)


def class_means(features: Tensor, target: Tensor) -> Tensor:
    """Mean feature of each class.

    Args:
        features: Features in float64, ``[n, d]``.
        target: Classes from 0 without gaps, int64, ``[n]``.

    Returns:
        Means in float64, ``[C, d]``.
    """
    counts = class_counts(target)
    sums = features.new_zeros(len(counts), features.shape[1]).index_add_(0, target, features)
    return sums / counts[:, None]


def warn_few_samples(score: str, features: Tensor) -> None:
    """Warn where there are no more samples than features.

    Args:
        score: Name of the score.
        features: ``[n, d]``.
    """
    samples, width = features.shape
    if samples <= width:
        reason = f"{width} features of {samples} samples fit chance. Take more samples or fewer features"
        warn_weak(score, reason, stacklevel=4)


def warn_single_samples(score: str, target: Tensor) -> None:
    """Warn where a class has one sample only, whose spread is unknown.

    Args:
        score: Name of the score.
        target: Classes from 0 without gaps, int64, ``[n]``.
    """
    if single := int((class_counts(target) == 1).sum()):
        reason = f"{single} classes have a single sample, which says nothing of their spread. Leave them out"
        warn_weak(score, reason, stacklevel=4)


def warn_saturated(score: str, value: Tensor, bound: float) -> None:
    """Warn where a score is at its bound to a relative 1e-9, so that it cannot tell sources apart.

    Args:
        score: Name of the score.
        value: The score.
        bound: Its greatest value, or its least.
    """
    if abs(float(value) - bound) <= 1e-9 * max(1.0, abs(bound)):
        reason = f"it is at its bound {bound:g}, where it cannot tell sources apart. Take more samples"
        warn_weak(score, reason, stacklevel=4)


def warn_weak(score: str, reason: str, stacklevel: int = 3) -> None:
    """Warn that a value is defined but says little.

    Args:
        score: Name of the score.
        reason: Why, and what to do about it.
        stacklevel: Calls from here up to the line that asked for the score, as of :func:`warnings.warn`.
    """
    warnings.warn(f"{score} says little here: {reason}.", UserWarning, stacklevel)
