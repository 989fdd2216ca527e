"""Rank: ask an estimator about all sources, and bring them in order."""

from collections.abc import Iterable, Mapping
from typing import Any

from pge_lightning.errors import PGEError
from pge_lightning.estimators.estimator import Estimate, Estimator
from pge_lightning.estimators.target import Target
from pge_lightning.ranking import RankedSource, Ranking, in_order
from pge_lightning.source import Source, SourceFacts

__all__ = ["RankedSource", "Ranking", "rank_sources", "ranking_of"]


def rank_sources(target: Target, estimator: Estimator) -> Ranking:
    """Ask an estimator about all sources; whatever is wrong with one of them ends in its line.

    What was asked before has no part in it.

    Args:
        target: The target, and the library with the sources.
        estimator: What ranks them.

    Returns:
        The ranking.
    """
    target.forget()
    target.notes, target.details = [], {}
    found = target.judge(estimator, target.names) if target.names else {}

    def make() -> Ranking:
        failures = {name: PGEError(reason) for name, reason in target.failures.items()}
        facts = {name: source.facts for name, source in target.sources.items() if isinstance(source, Source)}
        lines = [_line(name, each, target, facts.get(name)) for name, each in {**found, **failures}.items()]
        return ranking_of(lines, estimator.name, estimator.higher_is_better, target.details, target.notes)

    return target.alone(make)


def ranking_of(
    lines: Iterable[RankedSource],
    estimator: str,
    higher_is_better: bool,
    details: Mapping[str, Mapping[str, Any]] | None = None,
    notes: Iterable[str] = (),
) -> Ranking:
    """Bring lines in order and mark ties.

    Args:
        lines: In any order.
        estimator: Name of the estimator.
        higher_is_better: Its direction.
        details: What estimators say of their own work.
        notes: What a reader should know; a sentence that comes twice is kept once.

    Returns:
        The ranking.
    """
    ordered, facts = (
        in_order(list(lines), higher_is_better),
        {name: dict(each) for name, each in (details or {}).items()},
    )
    return Ranking(ordered, estimator, higher_is_better, facts, tuple(dict.fromkeys(notes)))


def _line(name: str, found: Estimate | Exception, target: Target, facts: SourceFacts | None) -> RankedSource:
    told = {column: each.get(name) for column, each in target.columns.items()}
    columns = {column: each.value for column, each in told.items() if isinstance(each, Estimate)}
    if isinstance(found, Exception):
        return RankedSource(name, "failed", describe(found), facts=facts, columns=columns)
    status = "ok" if found.shortlisted else "not opened"
    return RankedSource(name, status, estimate=found, facts=facts, columns=columns)


def describe(error: Exception) -> str:
    """What went wrong, with the kind of error where its text alone may not tell."""
    text = " ".join(str(error).split())
    return text if isinstance(error, PGEError) and text else f"{type(error).__name__}: {text}"
