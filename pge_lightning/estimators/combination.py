"""Combination: estimators that see different things, added up as standardised votes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev

from pge_lightning.errors import PGEError, SilentError
from pge_lightning.estimators.estimator import Estimate, Estimates, Estimator, Need, dependence, probes_of
from pge_lightning.estimators.target import Target
from pge_lightning.intervals import error_and_margin
from pge_lightning.probe import Probe

__all__ = ["Combination", "reliability", "standardised"]


@dataclass(frozen=True)
class Combination:
    """The weighted sum of several estimators' standardised estimates; higher is better.

    Each estimator's values are turned so that higher is better, centred, and divided by their spread over all sources
    that it has judged.

    An estimator that has nothing to say (:class:`~pge_lightning.errors.SilentError`), such as a score of labels where
    there are none, or that fails for several sources, and all of them, for one reason, is left out, and the ranking
    says so. A source that one of the others cannot judge fails, and the rest is ranked as if it were not there.

    Args:
        estimators: What to combine, by any names; null entries are left out.
        weights: Weights by the same names; 1 where there is none. 0 leaves an estimator out, and less than 0 turns it.
        name: The column in tables.
        hedge: Names of estimators whose votes count by their reliability, the share of their spread that is not their
            own noise (:func:`reliability`), too.

    Raises:
        ValueError: If there is nothing to combine, two estimators have the same name, a weight is not finite, or a
            weight or `hedge` names nothing.
    """

    estimators: Mapping[str, Estimator | None]
    weights: Mapping[str, float] = field(default_factory=dict)
    name: str = "combined"
    hedge: Sequence[str] = ()
    higher_is_better: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("Expected at least one of `estimators` with a weight other than 0, but got none.")
        names = [each.name for each in self.members.values()]
        if len(set(names)) < len(names):
            raise ValueError(f"Expected estimators of different names, but got {names}. Give one of them a `name`.")
        object.__setattr__(self, "hedge", tuple(self.hedge))
        if unknown := [name for name in self.hedge if name not in self.estimators]:
            raise ValueError(f"Expected `hedge` to name some of {list(self.estimators)}, but got {unknown}.")
        for name, weight in self.weights.items():
            if name not in self.estimators:
                raise ValueError(f"Expected `weights` for some of {list(self.estimators)}, but got one for {name!r}.")
            if not math.isfinite(weight):
                raise ValueError(f"Expected the weight of '{name}' to be finite, but got {weight}.")

    @property
    def members(self) -> dict[str, Estimator]:
        """The estimators that take part."""
        given = {name: each for name, each in self.estimators.items() if each is not None}
        return {name: each for name, each in given.items() if self.weights.get(name, 1.0) != 0}

    @property
    def needs(self) -> frozenset[Need]:
        """What all of them need together."""
        return frozenset().union(*(each.needs for each in self.members.values()))

    @property
    def cost(self) -> str:
        """What each of them costs."""
        return "; ".join(f"{each.name}: {each.cost}" for each in self.members.values())

    @property
    def probes(self) -> list[Probe]:
        """Those of all of them."""
        return [probe for each in self.members.values() for probe in probes_of(each)]

    def estimate(self, target: Target, sources: Sequence[str]) -> Estimates:
        """Ask all estimators and add up.

        Args:
            target: The target.
            sources: Names of sources.

        Returns:
            Source to the sum, about 0 in the mean over the sources, or to what went wrong with it.

        Raises:
            PGEError: If no estimator can say anything.
        """
        failed: dict[str, Exception] = {}
        while left := [source for source in sources if source not in failed]:
            voters, lost = self._vote(target, left)
            if not lost:
                return {**self._add_up(voters, target, left), **failed}
            failed |= lost
            target.forget()  # they took part in what is said of the others
        return failed

    def _vote(self, target: Target, sources: Sequence[str]) -> tuple[list[str], dict[str, Exception]]:
        """Names of the estimators that have a say, and the sources that one of these cannot judge."""
        voters: list[str] = []
        lost: dict[str, Exception] = {}
        for name, member in self.members.items():
            found = self._ask(member, target, [source for source in sources if source not in lost])
            if found is not None:
                voters.append(name)
                lost |= {source: each for source, each in found.items() if isinstance(each, Exception)}
        if not voters:
            raise PGEError(f"Expected at least one estimator to judge the sources, but none could. {target.notes[-1]}")
        return voters, lost

    def _ask(self, member: Estimator, target: Target, sources: Sequence[str]) -> Estimates | None:
        """One estimator's estimates, or nothing if it can judge none of the sources."""
        try:
            found = target.judge(member, sources)
        except (PGEError, ValueError) as error:
            target.notes.append(f"Left out {member.name}: {error}")
            return None
        # Of all sources that it was asked about: one may fail for a reason of its own, which says nothing of the rest.
        known = target.known(member).values()
        errors = [each for each in known if isinstance(each, Exception)]
        silent = all(isinstance(each, SilentError) for each in errors)
        common = len(errors) > 1 and len({str(each) for each in errors}) == 1
        if errors and len(errors) == len(known) and (silent or common):
            target.notes.append(f"Left out {member.name}: {errors[0]}")
            return None
        return found

    def _add_up(self, voters: Sequence[str], target: Target, sources: Sequence[str]) -> dict[str, Estimate]:
        totals, variances = dict.fromkeys(sources, 0.0), dict.fromkeys(sources, 0.0)
        for name in voters:
            member = self.members[name]
            found = standardised(target.known(member))
            weight = self.weights.get(name, 1.0)
            if name in self.hedge:
                share = reliability(found)
                weight *= share
                text = f"{member.name} counts {share:.0%} of its vote: that much of its spread is more than noise."
                target.notes.append(text)
            sign = 1 if member.higher_is_better else -1
            for source in sources:
                value, error = found[source]
                totals[source] += weight * sign * value
                variances[source] += (weight * error) ** 2
        return {source: _estimate(totals[source], math.sqrt(variances[source])) for source in sources}


def standardised(found: Estimates) -> dict[str, tuple[float, float]]:
    """Values in units of their spread over sources, centred, with their standard errors.

    Draws under the same conditions are centred draw by draw, so that the error is that of a source's place among the
    others. Errors that are not known count as 0.

    Args:
        found: Source to its estimate.

    Returns:
        Source to value and error; all values are 0 where they do not differ.

    Example:
        >>> found = standardised({"near": Estimate(1.0), "far": Estimate(3.0)})
        >>> found
        {'near': (-1.0, 0.0), 'far': (1.0, 0.0)}
    """
    estimates = {name: each for name, each in found.items() if isinstance(each, Estimate)}
    values = [each.value for each in estimates.values()]
    if not values:
        return {}
    mean, spread = fmean(values), pstdev(values)
    draws = {len(each.replicates) for each in estimates.values()}
    shared = draws.pop() if len(draws) == 1 else 0
    middle = (
        [fmean(column) for column in zip(*(each.replicates for each in estimates.values()), strict=True)]
        if shared
        else []
    )
    scale = spread or math.inf
    return {name: ((each.value - mean) / scale, _error(each, middle) / scale) for name, each in estimates.items()}


def reliability(found: Mapping[str, tuple[float, float]]) -> float:
    """The share of a spread over sources that is not noise, as an estimate that is unbiased where it is not 0.

    Args:
        found: What :func:`standardised` gave.

    Returns:
        In [0, 1]: one minus the mean squared error, or 0; 0 where values do not differ, 1 where errors are not known.

    Example:
        >>> reliability({"near": (-1.0, 0.5), "far": (1.0, 0.5)})
        0.75
    """
    if not any(value for value, _ in found.values()):
        return 0.0
    return max(0.0, 1 - fmean(error**2 for _, error in found.values()))


def _error(estimate: Estimate, middle: Sequence[float]) -> float:
    if len(middle) < 2:
        return 0.0 if math.isnan(estimate.standard_error) else estimate.standard_error
    centred, _ = error_and_margin([draw - centre for draw, centre in zip(estimate.replicates, middle, strict=True)])
    return centred * dependence(estimate)


def _estimate(value: float, error: float) -> Estimate:
    margin = 1.96 * error
    return Estimate(value, error, value - margin, value + margin) if error else Estimate(value)
