"""Cross-validated accuracy of a linear classifier on the source's features."""

from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pge_lightning.functional.scores.checks import check_features, class_counts, warn_single_samples

__all__ = ["Classifier", "Measure", "linear_probe", "linear_probe_folds"]

Classifier: TypeAlias = Literal["ridge", "logistic"]
Measure: TypeAlias = Literal["accuracy", "confidence"]

STRENGTHS: dict[str, float] = {"ridge": 0.2, "logistic": 0.01}


def linear_probe(
    features: Tensor,
    target: Tensor,
    folds: int = 3,
    repeats: int = 5,
    classifier: Classifier = "ridge",
    strength: float | None = None,
    measure: Measure = "accuracy",
    seed: int = 0,
) -> Tensor:
    """Mean accuracy of a linear classifier on samples that it was not fitted to.

    The mean of :func:`linear_probe_folds`, weighing every fold alike.

    Args:
        features: Features of the samples, ``[n, d]``, of any floating dtype.
        target: Class of each sample, ``[n]``, of any integer dtype; names of classes are free.
        folds: Parts of which each is left out in turn, from 2 to ``n``.
        repeats: How often the samples are split anew.
        classifier: ``"ridge"`` or ``"logistic"``.
        strength: Penalty; ``None`` takes 0.2 for ridge and 0.01 for logistic regression.
        measure: ``"accuracy"`` or ``"confidence"``.
        seed: Of the splits.

    Returns:
        Scalar in float64, in [0, 1]; higher is more transferable.

    Raises:
        ValueError: See :func:`linear_probe_folds`.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import linear_probe
        >>> features = torch.tensor([[0.0], [0.1], [0.2], [0.9], [1.0], [1.1]])
        >>> linear_probe(features, torch.tensor([7, 7, 7, 3, 3, 3]))
        tensor(1., dtype=torch.float64)
    """
    return linear_probe_folds(features, target, folds, repeats, classifier, strength, measure, seed).mean()


def linear_probe_folds(
    features: Tensor,
    target: Tensor,
    folds: int = 3,
    repeats: int = 5,
    classifier: Classifier = "ridge",
    strength: float | None = None,
    measure: Measure = "accuracy",
    seed: int = 0,
) -> Tensor:
    r"""Accuracy of a linear classifier on each fold of repeated, stratified cross-validation.

    The splits depend on `target` and `seed` alone, so that the same entry means the same samples for every source.
    Every class is spread over the folds as evenly as it can be, a class of fewer samples than folds, too. Features are
    standardised over all samples, which looks at no class.

    ``"ridge"`` regresses one-hot classes on the features in closed form and predicts the class of the largest value.
    ``"logistic"`` is softmax regression by scikit-learn, no better at few labels and slower. To the sum of squares, or
    twice the sum of log-likelihoods, both add :math:`\lambda e |W|^2`. Here :math:`e` is the mean of the eigenvalues of
    :math:`X^T X` that are not zero, about ``max(n, d)``: so one :math:`\lambda` serves few samples and many, narrow
    features and wide ones. Constant features are left out.

    ``"confidence"`` is the mean value, clipped to [0, 1], that a sample's own class gets: the regression's value or the
    probability. It moves with every sample and not only with those near a boundary, and so is less noisy.

    Args:
        features: Features of the samples, ``[n, d]``, of any floating dtype.
        target: Class of each sample, ``[n]``, of any integer dtype; names of classes are free.
        folds: Parts of which each is left out in turn, from 2 to ``n``.
        repeats: How often the samples are split anew.
        classifier: ``"ridge"`` or ``"logistic"``.
        strength: Penalty :math:`\lambda`; ``None`` takes 0.2 for ridge and 0.01 for logistic regression.
        measure: ``"accuracy"`` or ``"confidence"``.
        seed: Of the splits.

    Returns:
        ``[repeats * folds]`` in float64, in [0, 1]; higher is more transferable.

    Raises:
        ValueError: If features or classes cannot be scored, there are not two classes of at least two samples, or an
            argument is out of its range.

    Example:
        >>> import torch
        >>> from pge_lightning.functional.scores import linear_probe_folds
        >>> features = torch.tensor([[0.0], [0.1], [0.2], [0.9], [1.0], [1.1]])
        >>> linear_probe_folds(features, torch.tensor([7, 7, 7, 3, 3, 3]), repeats=1)
        tensor([1., 1., 1.], dtype=torch.float64)
    """
    features, target = check_features(features, target)
    _check_arguments(target, folds, repeats, classifier, strength, measure)
    warn_single_samples("Linear probe", target)
    features = features[:, (features != features[:1]).any(dim=0)]
    features = (features - features.mean(dim=0)) / features.std(dim=0, unbiased=False)
    held = [numbers == fold for numbers in fold_numbers(target, folds, repeats, seed) for fold in range(folds)]
    predict = _ridge if classifier == "ridge" else _logistic
    eigenvalue = float(features.square().sum()) / min(features.shape)
    guesses = predict(features, target, held, eigenvalue * (STRENGTHS[classifier] if strength is None else strength))
    return torch.stack([_judge(guess, target[out], measure) for guess, out in zip(guesses, held, strict=True)])


def fold_numbers(target: Tensor, folds: int, repeats: int, seed: int) -> Tensor:
    """Which fold each sample is left out with.

    Args:
        target: Classes from 0 without gaps, int64, ``[n]``.
        folds: Number of folds.
        repeats: Number of splits.
        seed: Of the draw.

    Returns:
        int64 ``[repeats, n]``, on the target's device. Names of classes do not matter, only which samples share one.
    """
    labels = target.cpu()
    # Classes go by their first sample.
    positions = torch.arange(len(labels))
    first = positions.new_full((len(labels),), len(labels)).scatter_reduce(0, labels, positions, "amin")[labels]
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.empty(repeats, len(labels), dtype=torch.int64)
    for row in numbers:
        shuffled = torch.randperm(len(labels), generator=generator)
        row[shuffled[first[shuffled].argsort(stable=True)]] = positions % folds
    return numbers.to(target.device)


def _judge(guesses: Tensor, target: Tensor, measure: Measure) -> Tensor:
    if measure == "accuracy":
        return (guesses.argmax(dim=1) == target).double().mean()
    return guesses.gather(1, target[:, None]).clamp(0.0, 1.0).mean()


def _ridge(features: Tensor, target: Tensor, held: list[Tensor], penalty: float) -> Iterator[Tensor]:
    samples, width = features.shape
    if width > samples:
        # Coordinates in the space that the samples span: penalty and predictions stay the same.
        features = torch.linalg.qr(features.T, mode="r").R.T
    features = torch.cat([features, features.new_ones(samples, 1)], dim=1)
    classes = torch.nn.functional.one_hot(target).double()
    gram, moment = features.T @ features, features.T @ classes
    gram.diagonal()[:-1] += penalty
    for out in held:
        left, right = features[out], classes[out]
        factor = torch.linalg.cholesky(gram - left.T @ left)
        yield left @ torch.cholesky_solve(moment - left.T @ right, factor)


def _logistic(features: Tensor, target: Tensor, held: list[Tensor], penalty: float) -> Iterator[Tensor]:
    for out in held:
        model = LogisticRegression(C=1 / penalty, max_iter=10_000)
        model.fit(features[~out].cpu().numpy(), target[~out].cpu().numpy())
        guesses = features.new_zeros(int(out.sum()), int(target.max()) + 1)
        guesses[:, model.classes_] = torch.from_numpy(model.predict_proba(features[out].cpu().numpy())).to(guesses)
        yield guesses


def _check_arguments(
    target: Tensor, folds: int, repeats: int, classifier: str, strength: float | None, measure: str
) -> None:
    if int((class_counts(target) >= 2).sum()) < 2:
        raise ValueError(
            "Expected two classes of at least two samples, one to fit and one to judge by, but got fewer. "
            "Take more samples per class."
        )
    if not 2 <= folds <= len(target):
        raise ValueError(f"Expected `folds` from 2 to the {len(target)} samples, but got {folds}.")
    if repeats < 1:
        raise ValueError(f"Expected `repeats` to be at least 1, but got {repeats}.")
    if classifier not in STRENGTHS:
        raise ValueError(f"Expected `classifier` to be one of {list(STRENGTHS)}, but got {classifier!r}.")
    if strength is not None and not strength > 0:
        raise ValueError(f"Expected `strength` above 0, but got {strength}.")
    if measure not in ("accuracy", "confidence"):
        raise ValueError(f"Expected `measure` to be 'accuracy' or 'confidence', but got {measure!r}.")
