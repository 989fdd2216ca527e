"""Rank: sources in the order of their gap to one target, with what is not known about the order."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import pandas as pd
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

from pge_lightning.collect import Collector
from pge_lightning.errors import PGEError
from pge_lightning.functional.gap import Kind, gaps_by_unit, spread_weights
from pge_lightning.gap import Gap, compare, gap_of, tied
from pge_lightning.isolation import derive_seed
from pge_lightning.signature import Signature
from pge_lightning.source import Source, SourceFacts

__all__ = ["RankedSource", "Ranking", "collect_halves", "noise_floor", "rank_sources"]

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
        weighed: Whether units count by the inverse of their spread over these sources. Such gaps depend on the
            library, and are to be compared within one ranking only.
    """

    sources: tuple[RankedSource, ...]
    kind: Kind
    probe: str
    budget: int
    noise_floor: Gap | None = None
    weighed: bool = False

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

    def without(self, name: str, reason: str) -> "Ranking":
        """The ranking after one more source has failed, say because its weights cannot be read.

        Args:
            name: The source.
            reason: Why it failed.

        Returns:
            A ranking whose other gaps are the same, and whose ties are those with the best that is left.
        """
        others = [line for line in self.sources if line.name != name]
        failed = [replace(x, status="failed", reason=reason, gap=None) for x in self.sources if x.name == name]
        return replace(self, sources=_order([*others, *failed]))

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
        weighed = "weighed " if self.weighed else ""
        title = (
            f"{weighed}{self.kind} gap to the target, smaller is closer (probe '{self.probe}', {self.budget} samples)"
        )
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
    sources: Mapping[str, Source | Exception],
    kind: Kind = "kernelwise",
    halves: tuple[Signature, Signature] | None = None,
    weigh: bool = True,
) -> Ranking:
    """Compare a target with every source; whatever is wrong with one of them ends in its line.

    Args:
        target: The target's signature.
        sources: Name to the opened source, or to what went wrong in opening it.
        kind: The formula of the gap.
        halves: Signatures of two halves of the target's data, whose gap is the noise floor.
        weigh: Whether the units of a kernelwise or layerwise gap are weighed so that each has an equal say
            (:func:`~pge_lightning.functional.spread_weights`), which takes three sources.

    Returns:
        The ranking.
    """
    # In one order whatever that of the library is, so that sums over sources are the same to the last bit.
    measured = {name: _measure(sources[name], target, kind) for name in sorted(sources)}
    tables = [table for table in measured.values() if isinstance(table, Tensor)]
    weights = spread_weights(torch.stack(tables)) if weigh and len(tables) > 2 else None
    lines = []
    for name, found in measured.items():
        source = sources[name]
        line = RankedSource(name, "ok", facts=source.facts if isinstance(source, Source) else None)
        if isinstance(found, Exception):
            lines.append(replace(line, status="failed", reason=str(found)))
        else:
            lines.append(replace(line, gap=_weigh(found, weights, target, kind)))
    floor = _weigh(_compare(*halves, kind), weights, halves[0], kind) if halves is not None else None
    return Ranking(_order(lines), kind, target.probe.name, target.budget, floor, weights is not None)


def _order(lines: Iterable[RankedSource]) -> tuple[RankedSource, ...]:
    """Smallest gap first, ties with it marked, failed sources last."""
    lines = list(lines)
    ranked = sorted((line.gap.value, line.name, line.gap, line) for line in lines if line.gap is not None)
    marked = [replace(line, tied=line is not ranked[0][3] and tied(gap, ranked[0][2])) for _, _, gap, line in ranked]
    return (*marked, *(replace(line, tied=False) for line in lines if line.gap is None))


def _measure(source: Source | Exception, target: Signature, kind: Kind) -> Tensor | Gap | Exception:
    """A source's gaps ``[restarts, units]``, or its gap where the formula has no units, or what went wrong."""
    if isinstance(source, Exception):
        return source
    try:
        return _compare(_signature(source, target), target, kind)
    except (PGEError, ValueError, OSError) as error:
        return error


def _compare(source: Signature, target: Signature, kind: Kind) -> Tensor | Gap:
    if kind in ("kernelwise", "layerwise") and target.probe.paired:
        source.check_comparable(target)
        return gaps_by_unit(source.units, target.units, kind)
    return compare(source, target, kind)


def _signature(source: Source, target: Signature) -> Signature:
    """The source's signature of the target's probe and rung."""
    entry = source.find(target.probe.recipe, target.fingerprint["budget"])
    if entry is None:
        held = sorted({f"'{other.probe}' at {other.budget}" for other in source.signatures})
        raise PGEError(
            f"Expected a signature of probe '{target.probe.name}' at {target.budget} samples, but it has "
            f"{', '.join(held) or 'none'}. Collect it with this probe."
        )
    return source.load_signature(entry)


def _weigh(found: Tensor | Gap, weights: Tensor | None, target: Signature, kind: Kind) -> Gap:
    """The gap from a table of units, by the weights where there are any."""
    if isinstance(found, Gap):
        return found
    values = found.mean(dim=1) if weights is None else found @ weights
    return gap_of(values.tolist(), kind, target.budget)


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


def collect_halves(collector: Collector) -> tuple[Signature, Signature]:
    """Signatures of two disjoint halves of a data set, whose gap no source can be expected to beat.

    Args:
        collector: The data set's collector.

    Returns:
        Both, at the largest rung that a half fills, or at all of a half where it fills none.

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
    first, second = (collector.part(sorted(order[start : start + half].tolist())) for start in (0, half))
    return first.collect(budget), second.collect(budget)


def noise_floor(collector: Collector, kind: Kind = "kernelwise") -> Gap:
    """Gap between two disjoint halves of a data set, at equal budgets: what no source can be expected to beat.

    Args:
        collector: The data set's collector.
        kind: The formula of the gap.

    Returns:
        The gap; see :func:`collect_halves` for its budget.
    """
    return compare(*collect_halves(collector), kind)
