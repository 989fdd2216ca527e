"""Estimator: the one interface of everything that ranks sources for a target."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

from pge_lightning.intervals import error_and_margin, quantile
from pge_lightning.probe import Probe

if TYPE_CHECKING:
    from pge_lightning.estimators.target import Target

__all__ = [
    "NEEDS",
    "Estimate",
    "Estimates",
    "Estimator",
    "Need",
    "dependence",
    "each",
    "of_replicates",
    "probes_of",
    "tied",
]

# What an estimator may ask for, in ascending order of what it costs to have.
Need: TypeAlias = Literal["facts", "records", "inputs", "labels", "signatures", "summaries", "weights"]
NEEDS: tuple[Need, ...] = ("facts", "records", "inputs", "labels", "signatures", "summaries", "weights")


@dataclass(frozen=True)
class Estimate:
    """What an estimator says of one source.

    Args:
        value: In the estimator's own unit and direction.
        standard_error: Of `value`; nan where it is not known.
        low: Lower end of the 95 % interval; nan where it is not known.
        high: Upper end.
        replicates: Independent draws of `value`, under conditions that are the same for every source one by one, such
            as restarts or folds; empty where there are none.
        shortlisted: Whether it is a judgement in full; not where the source did not make it to a shortlist.
    """

    value: float
    standard_error: float = math.nan
    low: float = math.nan
    high: float = math.nan
    replicates: tuple[float, ...] = ()
    shortlisted: bool = True


Estimates: TypeAlias = Mapping[str, "Estimate | Exception"]


@runtime_checkable
class Estimator(Protocol):
    """Ranks sources: a class with these members, and a YAML file in the group ``selector``.

    Where it compares signatures, an attribute ``probes`` lists the probes that sources must be collected with
    (:func:`probes_of`).

    Attributes:
        name: The column in tables, such as ``"gap"``.
        higher_is_better: Whether a larger value promises more of a source.
        needs: What it asks for, of :data:`NEEDS`; with ``"weights"`` every source it is asked about is opened.
        cost: What a new target costs, in words.
    """

    @property
    def name(self) -> str:
        """The column in tables."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """The direction."""
        ...

    @property
    def needs(self) -> frozenset[Need]:
        """What it asks for."""
        ...

    @property
    def cost(self) -> str:
        """What a new target costs."""
        ...

    def estimate(self, target: "Target", sources: Sequence[str]) -> Estimates:
        """Judge sources for a target.

        Args:
            target: What is known of the target, and of the library.
            sources: Names of the sources to judge.

        Returns:
            Source to its estimate, or to what went wrong with this source; every name has an entry.
        """
        ...


def probes_of(estimator: Estimator) -> list[Probe]:
    """The probes that sources must be collected with for an estimator.

    Args:
        estimator: Any estimator.

    Returns:
        Its ``probes``, each once; none where it compares no signatures.
    """
    return list(dict.fromkeys(getattr(estimator, "probes", ())))


def of_replicates(values: Iterable[float]) -> Estimate:
    """The mean of independent draws, with its error and Student-t interval.

    Args:
        values: The draws, at least one.

    Returns:
        The estimate; error and interval are nan for a single draw.

    Example:
        >>> of_replicates([0.5, 0.7]).value
        0.6
    """
    draws = tuple(values)
    mean = math.fsum(draws) / len(draws)
    error, margin = error_and_margin(draws)
    return Estimate(mean, error, mean - margin, mean + margin, draws)


def dependence(estimate: Estimate) -> float:
    """How much larger the error of a mean is than if its draws were independent, as folds that share samples are not.

    Args:
        estimate: Its draws are the replicates.

    Returns:
        The factor; 1 where draws or error are not known.

    Example:
        >>> dependence(of_replicates([0.5, 0.7]))
        1.0
    """
    alone, _ = error_and_margin(estimate.replicates)
    return estimate.standard_error / alone if alone > 0 and estimate.standard_error > 0 else 1.0


def tied(a: Estimate, b: Estimate, confidence: float = 0.95) -> bool:
    """Whether two estimates of one estimator cannot be told apart.

    Draws under the same conditions are compared pair by pair, which cancels what a condition adds to both, with an
    error that is larger where draws depend on each other (:func:`dependence`); else the standard errors decide, as of
    independent estimates.

    Args:
        a: One source's estimate.
        b: Another's.
        confidence: Of the interval of their difference, in (0, 1).

    Returns:
        True where that interval holds 0. Without draws and errors only equal values are tied.

    Example:
        >>> near, far = of_replicates([0.4, 0.5, 0.6]), of_replicates([0.5, 0.6, 0.7])
        >>> tied(near, far), tied(near, near)
        (False, True)
    """
    if len(a.replicates) == len(b.replicates) > 1:
        differences = [mine - its for mine, its in zip(a.replicates, b.replicates, strict=True)]
        _, margin = error_and_margin(differences, confidence)
        return abs(math.fsum(differences) / len(differences)) <= margin * max(dependence(a), dependence(b))
    error = math.hypot(a.standard_error, b.standard_error)
    margin = 0.0 if math.isnan(error) else error * quantile(confidence)
    return abs(a.value - b.value) <= margin


def each(sources: Iterable[str], judge: Callable[[str], Estimate]) -> dict[str, Estimate | Exception]:
    """Judge sources one by one; what goes wrong with one of them is kept in its place.

    Args:
        sources: Their names.
        judge: Takes a name and returns the estimate.

    Returns:
        Name to estimate or error; an estimate that is not finite is an error.
    """
    return {name: _attempt(judge, name) for name in sources}


def _attempt(judge: Callable[[str], Estimate], name: str) -> Estimate | Exception:
    try:
        estimate = judge(name)
    except Exception as error:  # of any kind: a source's forward is code of the user
        return error
    if not math.isfinite(estimate.value):
        return ValueError(f"Expected a finite value, but got {estimate.value}. Look at the source's features.")
    return estimate
