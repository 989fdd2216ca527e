"""The standing as an estimator: how a source did on other targets, from the library's records."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pge_lightning.estimators.estimator import Estimate, Estimates, Need
from pge_lightning.estimators.target import Target

__all__ = ["StandingEstimator"]


@dataclass(frozen=True)
class StandingEstimator:
    """Sources by their mean standing on past targets; higher is better, about 0 in the mean.

    In units of the spread over sources on one target (:func:`~pge_lightning.functional.standing.standings`). A source
    that nobody has tried stands in the middle, with the largest error: it is not dropped for being new.

    Args:
        same_target: What records of a target of the same name are good for: ``"ignore"`` leaves them out, so that what
            is told of a known target may be compared with what was found; ``"use"`` counts them as one more target.
            More they are not worth: one run differs from the next by about as much as one target from the next.
        name: The column in tables.

    Raises:
        ValueError: If `same_target` is neither.
    """

    same_target: Literal["ignore", "use"] = "ignore"
    name: str = "standing"
    higher_is_better: bool = field(default=True, init=False)
    needs: frozenset[Need] = field(default=frozenset({"records"}), init=False)
    cost: str = field(default="nothing", init=False)

    def __post_init__(self) -> None:
        if self.same_target not in ("ignore", "use"):
            raise ValueError(f"Expected `same_target` to be 'ignore' or 'use', but got {self.same_target!r}.")

    def estimate(self, target: Target, sources: Sequence[str]) -> Estimates:
        """Look up what the records say.

        Args:
            target: The target; its name and records count.
            sources: Names of sources.

        Returns:
            Source to its standing.
        """
        found, note = target.alone(lambda: self._look_up(target, sources))
        target.notes.extend(note)
        return found

    def _look_up(self, target: Target, sources: Sequence[str]) -> tuple[dict[str, Estimate], list[str]]:
        records = target.records
        own = sum(record.target == target.name for record in records)
        left_out = target.name if self.same_target == "ignore" else None
        table = records.standings(exclude_target=left_out, sources=sources).loc[list(sources)]
        notes = []
        if own and left_out is not None:
            notes.append(f"{self.name}: {own} records of '{target.name}' itself are left out (`same_target`).")
        if new := [str(name) for name in table.index[table["targets"] == 0]]:
            notes.append(
                f"{self.name}: nothing is known of {', '.join(new)}, which stand in the middle. Records count where "
                "two sources were tried with equal target, metric and settings."
            )
        rows = zip(table.index, table["standing"], table["standard_error"], strict=True)
        return {str(name): _estimate(float(value), float(error)) for name, value, error in rows}, notes


def _estimate(value: float, error: float) -> Estimate:
    return Estimate(value, error, value - 1.96 * error, value + 1.96 * error)
