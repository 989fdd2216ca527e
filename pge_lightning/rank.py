"""Rank: sources in the order of their gap to one target, with what is not known about the order."""

from dataclasses import asdict, dataclass

import pandas as pd
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pge_lightning.collect import Collector
from pge_lightning.errors import PGEError
from pge_lightning.functional.gap import Kind
from pge_lightning.gap import Gap, compare, tied
from pge_lightning.isolation import derive_seed
from pge_lightning.signature import Signature
from pge_lightning.source import Source, SourceFacts

__all__ = ["RankedSource", "Ranking", "noise_floor", "rank_sources"]

_COLUMNS = {
    "rank": "Int64",
    "source": "object",
    "gap": "float64",
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


@dataclass(frozen=True)
class RankedSource:
    """One line of a ranking.

    Args:
        name: The source.
        status: ``"ok"``, or ``"failed"`` where it could not be read or compared.
        reason: Why it failed; empty where it did not.
        gap: Its gap to the target, if it did not fail.
        tied: Whether the restarts cannot tell it from the best source.
        facts: What the library knows of it, where that could be read.
    """

    name: str
    status: str
    reason: str = ""
    gap: Gap | None = None
    tied: bool = False
    facts: SourceFacts | None = None


@dataclass(frozen=True)
class Ranking:
    """All sources of a library: ranked ones first, smallest gap at the top, then those that failed.

    Args:
        sources: The lines.
        kind: The formula of the gap.
        probe: Name of the probe.
        budget: Samples that each restart drew, on both sides.
        noise_floor: Gap between two disjoint halves of the target's own data, if it was asked for.
    """

    sources: tuple[RankedSource, ...]
    kind: Kind
    probe: str
    budget: int
    noise_floor: Gap | None = None

    @property
    def best(self) -> RankedSource:
        """The source with the smallest gap.

        Raises:
            PGEError: If every source failed.
        """
        if not self.sources or self.sources[0].status != "ok":
            reasons = "; ".join(f"{line.name}: {line.reason}" for line in self.sources[:3])
            raise PGEError(f"Expected at least one source that compares, but all {len(self.sources)} failed. {reasons}")
        return self.sources[0]

    @property
    def ties(self) -> list[str]:
        """Names of the sources that the restarts cannot tell from the best one."""
        return [line.name for line in self.sources[1:] if line.tied]

    def to_pandas(self) -> pd.DataFrame:
        """One row per source, in the order of the ranking; failed sources have neither rank nor gap.

        Returns:
            Columns rank, source, gap, standard_error, low, high, tied, classes, samples, metric, value, status, reason.
        """
        rows = []
        for number, line in enumerate(self.sources, start=1):
            gap = {name: getattr(line.gap, name, None) for name in ("value", "standard_error", "low", "high")}
            facts = asdict(line.facts) if line.facts is not None else {}
            rows.append({
                "rank": number if line.gap is not None else None,
                "source": line.name,
                "gap": gap.pop("value"),
                **gap,
                "tied": line.tied,
                **{name: facts.get(name) for name in ("classes", "samples", "metric", "value")},
                "status": line.status,
                "reason": line.reason,
            })
        return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)

    def __rich__(self) -> Group:
        """The table that is printed, and below it why sources failed."""
        title = f"{self.kind} gap to the target, smaller is closer (probe '{self.probe}', {self.budget} samples)"
        floor = self.noise_floor
        caption = floor and f"noise floor at {floor.budget} samples: {floor.value:.3f} ± {floor.standard_error:.3f}"
        table = Table("rank", "source", "gap", "95 % interval", "classes", "samples", "own metric", "status")
        table.title, table.caption, table.box, table.padding = title, caption or None, SIMPLE_HEAD, (0, 1, 0, 0)
        for column in table.columns:
            # On a narrow terminal names fold, so that numbers stay whole.
            column.no_wrap, column.overflow = column.header not in ("source", "own metric"), "fold"
        for number, line in enumerate(self.sources, start=1):
            table.add_row(*_cells(number, line))
        reasons = [Text(f"{line.name} {line.status}: {line.reason}") for line in self.sources if line.reason]
        return Group(table, *reasons)


def rank_sources(
    target: Signature,
    sources: dict[str, Source | Exception],
    kind: Kind = "kernelwise",
    floor: Gap | None = None,
) -> Ranking:
    """Compare a target with every source; whatever is wrong with one of them ends in its line.

    Args:
        target: The target's signature.
        sources: Name to the opened source, or to what went wrong in opening it.
        kind: The formula of the gap.
        floor: The target's noise floor, to be shown beside.

    Returns:
        The ranking.
    """
    lines = [_line(name, source, target, kind) for name, source in sources.items()]
    ranked = sorted(
        (line for line in lines if line.gap), key=lambda line: (line.gap.value if line.gap else 0, line.name)
    )
    best = ranked[0].gap if ranked else None
    marked = [
        RankedSource(**{**vars(line), "tied": best is not None and line.gap is not best and tied(line.gap, best)})
        for line in ranked
        if line.gap is not None
    ]
    failed = [line for line in lines if line.gap is None]
    return Ranking((*marked, *failed), kind, target.probe.name, target.budget, floor)


def _cells(number: int, line: RankedSource) -> tuple[str, ...]:
    """One row of the printed table."""
    facts, gap = line.facts, line.gap
    return (
        str(number) if gap else "-",
        line.name,
        f"{gap.value:.4f}" if gap else "-",
        f"{gap.low:.3f}-{gap.high:.3f}" if gap else "-",
        str(facts.classes) if facts and facts.classes is not None else "-",
        str(facts.samples) if facts else "-",
        f"{facts.metric} {facts.value:.3f}" if facts and facts.value is not None else "-",
        "tied" if line.tied else line.status,
    )


def _line(name: str, source: Source | Exception, target: Signature, kind: Kind) -> RankedSource:
    if isinstance(source, Exception):
        return RankedSource(name, "failed", str(source))
    try:
        entry = source.find(target.probe.recipe, target.fingerprint["budget"])
        if entry is None:
            held = sorted({f"'{other.probe}' at {other.budget}" for other in source.signatures})
            raise PGEError(
                f"Expected a signature of probe '{target.probe.name}' at {target.budget} samples, but it has "
                f"{', '.join(held) or 'none'}. Collect it with this probe."
            )
        gap = compare(source.load_signature(entry), target, kind)
    except (PGEError, ValueError, OSError) as error:
        return RankedSource(name, "failed", str(error), facts=source.facts)
    return RankedSource(name, "ok", gap=gap, facts=source.facts)


def noise_floor(collector: Collector, kind: Kind = "kernelwise") -> Gap:
    """Gap between two disjoint halves of a data set, at equal budgets: what no source can be expected to beat.

    Args:
        collector: The data set's collector.
        kind: The formula of the gap.

    Returns:
        The gap, at the largest rung that a half fills, or at all of a half where it fills none.

    Raises:
        PGEError: If a half is smaller than a batch.
    """
    size = len(collector.pool)
    half = size // 2
    if half < collector.probe.batch_size:
        raise PGEError(
            f"Expected two halves of at least {collector.probe.batch_size} samples each, but got {size} in all. "
            "Ask for no noise floor, or use a smaller `batch_size` of the probe."
        )
    order = torch.randperm(size, generator=torch.Generator().manual_seed(derive_seed(collector.probe.seed, "halves")))
    budget = max((rung for rung in collector.probe.budgets if rung <= half), default=half)
    parts = (collector.part(sorted(order[start : start + half].tolist())) for start in (0, half))
    first, second = (part.collect(budget) for part in parts)
    return compare(first, second, kind)
