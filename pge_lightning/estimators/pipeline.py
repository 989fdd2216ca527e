"""Pipeline: a cheap estimator decides which sources are worth opening, a better one ranks these."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pge_lightning.estimators.estimator import Estimate, Estimates, Estimator, Need, probes_of, tied
from pge_lightning.estimators.target import Target
from pge_lightning.probe import Probe

__all__ = ["Pipeline"]


@dataclass(frozen=True)
class Pipeline:
    """Rank all sources by one estimator, and the best of them by another one; higher is better.

    Sources that the second estimator is not asked about stand below those it has judged, in the order of the first.

    Args:
        first: Ranks all sources; should open none.
        then: Ranks the shortlist.
        shortlist: How many sources that is: a number; a fraction of all sources, below 1 (rounded down); or ``"ties"``,
            those that the first estimator cannot tell from its best one.
        least: Fewest sources on the shortlist, where it is a fraction.
        most: Most sources on the shortlist, where it is of ties.
        name: The column in tables.

    Raises:
        ValueError: If `shortlist`, `least` or `most` is out of range.
    """

    first: Estimator
    then: Estimator
    shortlist: float | Literal["ties"] = 0.3
    least: int = 1
    most: int | None = None
    name: str = "combined"
    higher_is_better: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        size = self.shortlist
        if size != "ties" and (isinstance(size, str) or not (0 < size < 1 or (size >= 1 and size % 1 == 0))):
            raise ValueError(
                f"Expected `shortlist` to be 'ties', a whole number, or a fraction between 0 and 1, but got {size!r}."
            )
        for field_name in ("least", "most"):
            count = getattr(self, field_name)
            if count is not None and count < 1:
                raise ValueError(f"Expected `{field_name}` to be at least 1, but got {count}.")

    @property
    def needs(self) -> frozenset[Need]:
        """What both need together."""
        return self.first.needs | self.then.needs

    @property
    def cost(self) -> str:
        """What both cost."""
        return f"{self.first.cost}; on the shortlist, {self.then.cost}"

    @property
    def probes(self) -> list[Probe]:
        """Those of both."""
        return [*probes_of(self.first), *probes_of(self.then)]

    def estimate(self, target: Target, sources: Sequence[str]) -> Estimates:
        """Make a shortlist and rank it.

        Args:
            target: The target.
            sources: Names of sources.

        Returns:
            Source to its estimate, or to what went wrong with it. Where one fails on the shortlist, all others are
            ranked anew, as if it were not there, and the next one takes its place.
        """
        failed: dict[str, Exception] = {}
        opened: dict[str, None] = {}
        while left := [name for name in sources if name not in failed]:
            found = self._rank(target, left, opened)
            lost = {name: each for name, each in found.items() if isinstance(each, Exception)}
            if not lost:
                target.notes.append(f"Opened {len(opened)} of {len(sources)} sources: {', '.join(opened)}.")
                return {**found, **failed}
            failed |= lost
            target.forget()  # they took part in what is said of the others
        return failed

    def _rank(self, target: Target, sources: Sequence[str], opened: dict[str, None]) -> Estimates:
        """All sources, if none of them fails; adds to those that were opened."""
        first = target.judge(self.first, sources)
        if any(isinstance(each, Exception) for each in first.values()):
            return first
        order = _ordered(first, self.first)
        size = self._size(first, order)
        shortlist, waiting = order[:size], order[size:]
        opened |= dict.fromkeys(shortlist)
        judged = target.judge(self.then, shortlist)
        best = {name: self._turned(each) if isinstance(each, Estimate) else each for name, each in judged.items()}
        bottom = min((each.value for each in best.values() if isinstance(each, Estimate)), default=0.0)
        rest = {name: Estimate(bottom - 1.0 - place, shortlisted=False) for place, name in enumerate(waiting)}
        return {**best, **rest}

    def _turned(self, estimate: Estimate) -> Estimate:
        """An estimate in this estimator's direction."""
        if self.then.higher_is_better:
            return estimate
        draws = tuple(-draw for draw in estimate.replicates)
        return replace(estimate, value=-estimate.value, low=-estimate.high, high=-estimate.low, replicates=draws)

    def _size(self, first: Estimates, order: Sequence[str]) -> int:
        if self.shortlist == "ties":
            best = first[order[0]]
            near = [name for name in order if isinstance(best, Estimate) and _told(first[name], best)]
            return min(len(near), self.most or len(near))
        if self.shortlist >= 1:
            return min(int(self.shortlist), len(order))
        return min(max(self.least, math.floor(self.shortlist * len(order) + 1e-9)), len(order))


def _told(each: Estimate | Exception, best: Estimate) -> bool:
    return isinstance(each, Estimate) and (each is best or tied(each, best))


def _ordered(found: Estimates, estimator: Estimator) -> list[str]:
    """Names, the most promising first."""
    sign = -1 if estimator.higher_is_better else 1
    values = {name: sign * each.value for name, each in found.items() if isinstance(each, Estimate)}
    return sorted(values, key=lambda name: (values[name], name))
