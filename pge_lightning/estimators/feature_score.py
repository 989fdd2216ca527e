"""Feature scores as estimators: every source is opened, and its encoder runs over the target's samples."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor

from pge_lightning.errors import SilentError
from pge_lightning.estimators.estimator import Estimate, Estimates, Need, each, of_replicates
from pge_lightning.estimators.features import Features, LabelsError
from pge_lightning.estimators.target import Target
from pge_lightning.functional import scores

__all__ = ["SCORES", "FeatureScore"]

Score: TypeAlias = Callable[..., Tensor]

# What features and class numbers are judged by.
OF_FEATURES: dict[str, Score] = {
    "h_score": scores.h_score,
    "regularized_h_score": scores.regularized_h_score,
    "trans_rate": scores.trans_rate,
    "gaussian_bhattacharyya": scores.gaussian_bhattacharyya,
    "parc": scores.parc,
    "nleep": scores.nleep,
    "sfda": scores.sfda,
    "pactran": scores.pactran,
    "knn": scores.knn_accuracy,
    "linear_probe": scores.linear_probe_folds,
}
# What takes the source's own predictions, and so its head.
OF_PREDICTIONS: dict[str, Score] = {"leep": scores.leep, "nce": scores.nce}
FOLDS = inspect.signature(scores.linear_probe_folds).parameters["folds"].default
SCORES = ("log_me", *OF_FEATURES, *OF_PREDICTIONS)


@dataclass(frozen=True)
class FeatureScore:
    """Sources by a score of the features that their encoders make of the target's samples; higher is better.

    Args:
        score: One of ``SCORES``. Also the column in tables, unless `name` says otherwise.
        options: Further arguments of the score's function in :mod:`pge_lightning.functional.scores`.
        name: The column in tables.

    Raises:
        ValueError: If there is no such score.
    """

    score: str = "linear_probe"
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    higher_is_better: bool = field(default=True, init=False)
    needs: frozenset[Need] = field(default=frozenset({"inputs", "labels", "weights"}), init=False)
    cost: str = field(default="opens every source, and runs it over the target's samples", init=False)

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"Expected `score` to be one of {list(SCORES)}, but got {self.score!r}.")
        object.__setattr__(self, "name", self.name or self.score)

    def estimate(self, target: Target, sources: Sequence[str]) -> Estimates:
        """Score sources.

        Args:
            target: The target.
            sources: Names of sources; their features are computed once for all scores.

        Returns:
            Source to its score, or to what went wrong with it.

        Raises:
            LabelsError: If the target has no labels that the score can work with.
        """
        target.prepare_features()
        found = target.alone(lambda: each(sources, lambda name: self.measure(target.features(name))))
        if error := next((estimate for estimate in found.values() if isinstance(estimate, LabelsError)), None):
            raise error
        return found

    def measure(self, found: Features) -> Estimate:
        """Score one encoder's features.

        Args:
            found: Features and labels.

        Returns:
            The score; with the folds as replicates where it is cross-validated.

        Raises:
            LabelsError: If the score cannot work with the labels.
            SilentError: If the score needs the source's head, and there is none.
        """
        if self.score == "log_me":
            numbers = found.labels if found.labels is not None and found.labels.is_floating_point() else None
            labels = found.classes if numbers is None else numbers
            return Estimate(scores.log_me(found.features, labels, **self.options).item())
        if self.score in OF_FEATURES:
            values = OF_FEATURES[self.score](found.features, found.classes, **self.options)
            return self._of_folds(values.tolist()) if values.ndim else Estimate(values.item())
        if found.probabilities is None:
            raise SilentError(
                f"Expected a source with one linear layer as its head for {self.score}, but the library holds none. "
                "Register the source again, or choose a score of features."
            )
        predicted = found.probabilities if self.score == "leep" else found.probabilities.argmax(dim=1)
        return Estimate(OF_PREDICTIONS[self.score](predicted, found.classes, **self.options).item())

    def _of_folds(self, values: list[float]) -> Estimate:
        """The mean over folds, whose training samples are shared: their spread alone says too small an error."""
        # Nadeau and Bengio 2003, section 3.2: the variance of the mean is (1/n + held/trained) that of one fold.
        folds = self.options.get("folds", FOLDS)
        plain = of_replicates(values)
        factor = (1 + len(values) / (folds - 1)) ** 0.5
        low, high = (plain.value + factor * (end - plain.value) for end in (plain.low, plain.high))
        return replace(plain, standard_error=factor * plain.standard_error, low=low, high=high)
