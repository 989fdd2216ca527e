"""Ranking: sources in order, with what is not known about the order."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pge_lightning.decide import Decision, decide
from pge_lightning.errors import PGEError
from pge_lightning.estimators.estimator import Estimate, tied
from pge_lightning.race import Race
from pge_lightning.source import SourceFacts

__all__ = ["RankedSource", "Ranking", "in_order"]

_TYPES = {
    "rank": "Int64",
    "source": "object",
    "standard_error": "float64",
    "low": "float64",
    "high": "float64",
    "tied": "bool",
    "classes": "Int64",
    "samples": "Int64",
    "metric": "object",
    "value": "float64",
    "status": "object",
    "reason": "object",
}
_UNCERTAINTY = ("standard_error", "low", "high")
_FACTS = ("classes", "samples", "metric", "value")
# What is printed of a large library: more is not read, and takes longer to print than to rank.
_PRINTED = 50


@dataclass(frozen=True)
class RankedSource:
    """One line of a ranking.

    Args:
        name: The source.
        status: ``"ok"``; ``"not opened"`` where it is not on the shortlist; ``"failed"`` where it could not be judged.
        reason: Why it failed; empty where it did not.
        estimate: What the estimator says of it, if it did not fail.
        tied: Whether it cannot be told from the best source.
        facts: What the library knows of it, where that could be read.
        columns: What other estimators said of it, by their names.
    """

    name: str
    status: str
    reason: str = ""
    estimate: Estimate | None = None
    tied: bool = False
    facts: SourceFacts | None = None
    columns: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """All sources of a library: ranked ones first, the best at the top, then those that failed.

    Args:
        sources: The lines.
        estimator: Name of the estimator.
        higher_is_better: Its direction.
        details: Estimator to what it says of its own work, in JSON types, such as the gap's probe and budget.
        notes: What a reader should know, in sentences.
        decision: Whether the best source is worth it, where that was asked.
        race: What a race of the best sources gave, where there was one.
    """

    sources: tuple[RankedSource, ...]
    estimator: str
    higher_is_better: bool
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    decision: Decision | None = None
    race: Race | None = None

    @property
    def best(self) -> RankedSource:
        """The source at the top.

        Raises:
            PGEError: If every source failed.
        """
        if not self.sources or self.sources[0].estimate is None:
            reasons = "; ".join(f"{line.name}: {line.reason}" for line in self.sources[:3])
            raise PGEError(f"Expected at least one source that compares, but all {len(self.sources)} failed. {reasons}")
        return self.sources[0]

    @property
    def ties(self) -> list[str]:
        """Names of the sources that cannot be told from the best one."""
        return [line.name for line in self.sources[1:] if line.tied]

    @property
    def columns(self) -> list[str]:
        """Names of the other estimators that said something."""
        names = dict.fromkeys(name for line in self.sources for name in line.columns)
        return [name for name in names if name != self.estimator]

    def without(self, name: str, reason: str) -> "Ranking":
        """The ranking after one more source has failed, say because its weights cannot be read.

        Args:
            name: The source.
            reason: Why it failed.

        Returns:
            A ranking whose other estimates are the same, and whose ties are those with the best that is left; what was
            decided of another source no longer counts.
        """
        others = [line for line in self.sources if line.name != name]
        failed = [replace(x, status="failed", reason=reason, estimate=None) for x in self.sources if x.name == name]
        ordered = in_order([*others, *failed], self.higher_is_better)
        left = replace(self, sources=ordered, decision=None)
        return left if self.decision is None or ordered[0].estimate is None else left.decided(decide(ordered[0].name))

    def decided(self, decision: Decision, race: Race | None = None) -> "Ranking":
        """The ranking with what was decided.

        Args:
            decision: The decision.
            race: The race behind it, if there was one.

        Returns:
            A ranking that is otherwise the same.
        """
        return replace(self, decision=decision, race=race)

    def scores(self) -> dict[str, float]:
        """Source to its estimate, turned so that higher is better; failed sources have none.

        Returns:
            In the order of the ranking.
        """
        sign = 1 if self.higher_is_better else -1
        return {line.name: sign * line.estimate.value for line in self.sources if line.estimate is not None}

    def to_pandas(self) -> pd.DataFrame:
        """One row per source, in the order of the ranking; failed sources have neither rank nor estimate.

        Returns:
            Columns rank, source, the estimator's name, standard_error, low, high, tied, one column for each other
            estimator, classes, samples, metric, value, status, reason.
        """
        columns = self.columns
        rows = [self._row(number, line, columns) for number, line in enumerate(self.sources, start=1)]
        numbers = [self.estimator, *columns]
        order = ["rank", "source", self.estimator, *_UNCERTAINTY, "tied", *columns, *_FACTS, "status", "reason"]
        return pd.DataFrame(rows, columns=order).astype({**_TYPES, **dict.fromkeys(numbers, "float64")})

    def to_dict(self) -> dict[str, Any]:
        """Everything in JSON types: estimator, direction, details, notes, decision, race, and one entry per source.

        Returns:
            The mapping.
        """
        rows: list[dict[str, Any]] = json.loads(self.to_pandas().to_json(orient="records"))
        return {
            "estimator": self.estimator,
            "higher_is_better": self.higher_is_better,
            "details": {name: dict(each) for name, each in self.details.items()},
            "notes": list(self.notes),
            "decision": self.decision and asdict(self.decision),
            "race": self.race and asdict(self.race),
            "sources": rows,
        }

    def _row(self, number: int, line: RankedSource, columns: Sequence[str]) -> dict[str, Any]:
        return {
            "rank": number if line.estimate is not None else None,
            "source": line.name,
            self.estimator: getattr(line.estimate, "value", None),
            **{name: getattr(line.estimate, name, None) for name in _UNCERTAINTY},
            "tied": line.tied,
            **{name: line.columns.get(name) for name in columns},
            **{name: getattr(line.facts, name, None) for name in _FACTS},
            "status": line.status,
            "reason": line.reason,
        }

    def __rich__(self) -> Group:
        """The table that is printed, and below it notes and why sources failed; of many sources the first fifty."""
        better = "larger" if self.higher_is_better else "smaller"
        columns = self.columns
        table = Table("rank", "source", self.estimator, "95 % interval", *columns, "classes", "samples")
        for heading in ("own metric", "status"):
            table.add_column(heading)
        table.title = f"Sources by {self.estimator}, {better} is better{self._described()}"
        table.box, table.padding = SIMPLE_HEAD, (0, 1, 0, 0)
        for column in table.columns:
            # On a narrow terminal names fold, so that numbers stay whole.
            column.no_wrap, column.overflow = column.header not in ("source", "own metric", *columns), "fold"
        for number, line in enumerate(self.sources[:_PRINTED], start=1):
            table.add_row(*_cells(number, line, columns))
        reasons = [f"{line.name} {line.status}: {line.reason}" for line in self.sources if line.reason]
        told = [*self.notes, *reasons[:_PRINTED]]
        if len(self.sources) > _PRINTED:
            told.append(f"Printed are {_PRINTED} of {len(self.sources):,} sources; `to_pandas()` holds all.")
        answer = [part for part in (self.race, self.decision) if part is not None]
        return Group(table, *map(Text, told), *answer)

    def _described(self) -> str:
        """What of the estimator's work belongs into the title."""
        details = self.details.get(self.estimator, {})
        if "probe" not in details:
            return ""
        weighed = "weighed, " if details.get("weighed") else ""
        return f" ({details['kind']}, {weighed}probe '{details['probe']}', {details['budget']} samples)"


def in_order(lines: Sequence[RankedSource], higher_is_better: bool) -> tuple[RankedSource, ...]:
    """The best first, ties with it marked, failed sources last.

    Args:
        lines: In any order.
        higher_is_better: The estimator's direction.

    Returns:
        The lines in order.
    """
    sign = -1 if higher_is_better else 1
    ranked = [(sign * line.estimate.value, line.name, line.estimate, line) for line in lines if line.estimate]
    ranked.sort(key=lambda entry: entry[:2])
    best = ranked[0][2] if ranked else None
    marked = [
        replace(line, tied=best is not None and each is not best and line.status == "ok" and tied(each, best))
        for _, _, each, line in ranked
    ]
    return (*marked, *(replace(line, tied=False) for line in lines if line.estimate is None))


def _cells(number: int, line: RankedSource, columns: Sequence[str]) -> tuple[str, ...]:
    """One row of the printed table."""
    facts, each = line.facts, line.estimate
    told = each is not None and not math.isnan(each.low)
    return (
        str(number) if each else "-",
        line.name,
        f"{each.value:.4f}" if each else "-",
        f"{each.low:.3f}-{each.high:.3f}" if each and told else "-",
        *(f"{line.columns[name]:.3f}" if name in line.columns else "-" for name in columns),
        str(facts.classes) if facts and facts.classes is not None else "-",
        str(facts.samples) if facts else "-",
        f"{facts.metric} {facts.value:.3f}" if facts and facts.value is not None else "-",
        "tied" if line.tied else line.status,
    )
