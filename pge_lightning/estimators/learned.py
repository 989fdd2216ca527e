"""A combination whose weights are learned from the library's records: learning to rank models, on one's own past."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from pge_lightning.errors import PGEError
from pge_lightning.estimators.combination import Combination
from pge_lightning.estimators.estimator import Estimate, Estimates, Estimator, Need
from pge_lightning.estimators.standing import StandingEstimator
from pge_lightning.estimators.target import Target
from pge_lightning.functional.learned import Learned, learn_weights
from pge_lightning.probe import Probe
from pge_lightning.records import Records

__all__ = ["LearnedCombination"]


@dataclass(frozen=True)
class LearnedCombination:
    """A combination that weighs each estimator by how much its word was worth on past targets; higher is better.

    The weights come from records that hold what these estimators told before the fine-tuning
    (:func:`~pge_lightning.functional.learned.learn_weights`); facts of sources are looked up. Where there are fewer
    than `least` such targets, or where learned weights do not rank targets that were left out better than the given
    ones do, the given ones are used. The ranking says which, and why. Records of a target of the same name are left
    out.

    Args:
        combination: What to combine, and the weights to start from and to fall back to. An estimator of weight 0 takes
            part only in what is learned, where it may get a weight of either sign; those of others stay at least 0.
        least: Fewest past targets to learn from.
        name: The column in tables.

    Raises:
        ValueError: If `least` is below 2.
    """

    combination: Combination
    least: int = 5
    name: str = "learned"
    higher_is_better: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.least < 2:
            raise ValueError(f"Expected `least` to be at least 2, but got {self.least}.")

    @property
    def everyone(self) -> Combination:
        """All that may get a weight, a vote each."""
        return replace(self.combination, weights={})

    @property
    def members(self) -> dict[str, Estimator]:
        """The same by their names."""
        return self.everyone.members

    @property
    def needs(self) -> frozenset[Need]:
        """What the estimators need, and records."""
        return self.everyone.needs | {"records"}

    @property
    def cost(self) -> str:
        """What the estimators cost."""
        return self.everyone.cost

    @property
    def probes(self) -> list[Probe]:
        """Those of the estimators."""
        return self.everyone.probes

    def estimate(self, target: Target, sources: Sequence[str]) -> Estimates:
        """Learn the weights, ask all estimators, and add up.

        Args:
            target: The target.
            sources: Names of sources.

        Returns:
            Source to the sum, about 0 in the mean over the sources, or to what went wrong with it.

        Raises:
            PGEError: If no estimator can say anything.
        """
        facts = {name: _facts(each, target) for name, each in self.members.items() if each.needs == {"facts"}}
        learned = target.alone(lambda: self.learn(_others(target), facts))
        told = {"used": learned.used, "targets": learned.targets, "weights": learned.weights}
        judged = {"gain": _known(learned.gain), "standard_error": _known(learned.standard_error)}
        target.details[self.name] = {**told, **judged}
        target.notes.append(f"{self.name}: {self._describe(learned)}")
        # Learned weights know how reliable a vote was; they need no hedging.
        hedge = () if learned.used else self.combination.hedge
        weighed = replace(self.combination, weights=learned.weights, name=self.name, hedge=hedge)
        return weighed.estimate(target, sources)

    def learn(self, records: Records, facts: Mapping[str, Mapping[str, float]] | None = None) -> Learned:
        """Learn the weights.

        Args:
            records: Finished fine-tunings, with what the estimators told of them before.
            facts: Name of an estimator to its values by source, for targets whose records hold none.

        Returns:
            The weights by the names of the combination.
        """
        scores, facts = records.scores(), facts or {}
        told: dict[str, pd.DataFrame] = {}
        standing = None
        for name, member in self.members.items():
            if isinstance(member, StandingEstimator):
                standing = name
                continue
            known = pd.Series(facts.get(name, {}), dtype=float).reindex(scores.columns)
            table = records.told(member.name).astype(float).fillna(known)
            told[name] = table if member.higher_is_better else -table
        weights = {name: self.combination.weights.get(name, 1.0) for name in self.members}
        # What has no say yet, and is known of nothing, is no reason not to learn from the rest.
        missing = [name for name in told if not weights[name] and told[name].isna().to_numpy().all()]
        for name in missing:
            del told[name], weights[name]
        learned = learn_weights(scores, told, weights, standing, self.least)
        return replace(learned, weights={**learned.weights, **dict.fromkeys(missing, 0.0)})

    def _describe(self, learned: Learned) -> str:
        if math.isnan(learned.gain):
            return (
                f"the given weights, because only {learned.targets} past targets have records of two sources with what "
                f"every estimator told of them, and {self.least} are needed."
            )
        gain = (
            f"{learned.gain:+.3f} ± {learned.standard_error:.3f} on {learned.targets} past targets that were left out"
        )
        if not learned.used:
            return f"the given weights, because learned ones changed the weighted tau by {gain}."
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in learned.weights.items())
        return f"learned weights ({weights}), which changed the weighted tau by {gain}."


def _facts(member: Estimator, target: Target) -> dict[str, float]:
    try:
        found = member.estimate(target, list(target.sources))
    except PGEError:
        return {}
    return {name: each.value for name, each in found.items() if isinstance(each, Estimate)}


def _others(target: Target) -> Records:
    return target.records if target.name is None else target.records.without_target(target.name)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
