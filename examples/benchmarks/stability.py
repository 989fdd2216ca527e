"""Is it the same ranking again? Other restarts, target samples, batches, class numbers, precision and walks.

PGE_DATA=FOLDER pge family=gray28
PGE_DATA=FOLDER python examples/benchmarks/stability.py outputs/gray28/sources outputs/gray28/results

Sources and targets are collected with some times the restarts of the default probe, in disjoint blocks: a ranking by
one block is compared with that by another, and under a changed condition with that by the same restarts, target by
target. Kendall's tau between the two orders, the share of equal choices, and what the changed ranking itself is worth
against what fine-tuning gave. A stated 95 % interval holds the mean over all other blocks in 95 % of the cases if it
is right and widened for the error of that mean. It goes on where it was stopped.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from finished import open_study
from rich.console import Console
from rich.progress import track
from rich.table import Table
from signatures import Collected, agreement, blocks, estimates, some, truth_of, worth

from pge_lightning.estimators import both_gaps
from pge_lightning.probe import Probe, Walk

Found = dict[str, pd.DataFrame]
Condition = tuple[Walk, dict[str, Any], Any]


def in_bfloat16(module: Any, batch: Any) -> torch.Tensor:
    """A loss under mixed precision."""
    with torch.autocast("cpu", torch.bfloat16):
        loss: torch.Tensor = torch.nn.functional.cross_entropy(module(batch[0]), batch[1])
    return loss


def conditions(walk: Walk, labels: bool) -> dict[str, Condition]:
    """Name of a condition to how the target is walked, what differs in its data, and its loss."""
    walks = {f"{steps} steps": replace(walk, steps=steps) for steps in (5, 10, 15, 20, 30, 45, 60)}
    walks |= {f"batches of {size}": replace(walk, batch_size=size) for size in (8, 16, 32, 64)}
    walks["rate 5e-3"] = replace(walk, lr=5e-3)
    found: dict[str, Condition] = {name: (each, {}, None) for name, each in walks.items() if each != walk}
    found |= {name: (walk, each, None) for name, each in other_data().items()}
    return found | ({"mixed precision (bfloat16)": (walk, {}, in_bfloat16)} if labels else {})


def other_data() -> dict[str, dict[str, Any]]:
    """Name of a condition to what differs in the target's data."""
    data: dict[str, dict[str, Any]] = {f"other target samples ({draw})": {"draw": draw} for draw in (1, 2)}
    data["other class numbers of the target"] = {"permute_classes": 1000}
    return data | {f"{labels} target labels": {"labels": labels} for labels in (50, 100, 1000)}


class Rankings:
    """Rankings under one probe, by any restarts under any condition."""

    def __init__(self, collected: Collected, probe: Probe, times: int) -> None:
        if probe.target is None or probe.restarts is None:
            raise ValueError(f"Expected probe '{probe.name}' to have restarts, and a walk for targets.")
        self.walk, self.size, self.count = probe.target, probe.restarts, times * probe.restarts
        self.collected, self.probe = collected, replace(probe, restarts=self.count)
        names = track(collected.study.sources, f"Collecting sources, {probe.name}")
        self.sources = {name: collected.source(name, self.probe) for name in names}
        self.base: Condition = (self.walk, {}, None)
        self.targets = self._collect(self.base, self.count)

    def by(self, condition: Condition, restarts: range, generality: float = 1.0) -> Found:
        """The ranking by some restarts of signatures that hold no more of them than are asked for."""
        targets = self.targets if condition == self.base else self._collect(condition, restarts.stop)
        sides = ({name: some(each, restarts) for name, each in side.items()} for side in (targets, self.sources))
        return estimates(*sides, generality)

    def _collect(self, condition: Condition, count: int) -> dict[str, Any]:
        walk, data, loss_fn = condition
        probe = replace(self.probe, target=walk, restarts=count)
        return {name: self.collected.target(name, probe, data, loss_fn) for name in self.collected.study.targets}


class BothGaps:
    """Rankings by the gap and the label-free gap, a vote each."""

    def __init__(self, gap: Rankings, label_free: Rankings) -> None:
        self.gap, self.label_free = gap, label_free
        self.taken = both_gaps(gap.probe).probes[0].of_target.restarts or 0, label_free.size

    def by(self, data: dict[str, Any], block: int) -> Found:
        """The ranking by one of the disjoint blocks of restarts, with other data of the target."""
        found = []
        for rankings, count in zip((self.gap, self.label_free), self.taken, strict=True):
            start = block * rankings.size
            found.append(rankings.by((rankings.walk, data, None), range(start, start + count)))
        one, two = found
        return {name: standardised(table) + standardised(two[name]) for name, table in one.items()}


def standardised(table: pd.DataFrame) -> pd.DataFrame:
    """Gaps in units of their spread over the sources."""
    values = table[["value"]]
    return (values - values.mean()) / values.std(ddof=0)


def rows(form: str, rankings: Rankings, generality: float, truth: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """One row per condition, pair of rankings and target."""
    size, base = rankings.size, rankings.base
    for number in sorted({size // 8, size // 4, size // 2, size, 2 * size} - {0, 1}):
        found = [rankings.by(base, block, generality) for block in blocks(rankings.count, number)]
        yield from pairs(form, f"{number} restarts", found, truth)
    first = rankings.by(base, range(size), generality)
    changed = conditions(rankings.walk, labels=rankings.probe.pretext is None)
    for name, condition in track(changed.items(), f"Ranking, {form}"):
        yield from compared(form, name, rankings.by(condition, range(size), generality), first, truth)


def rows_of_both(both: BothGaps, truth: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """The same for both gaps, with their own restarts and other data."""
    found = [both.by({}, block) for block in range(both.gap.count // both.gap.size)]
    yield from pairs("both gaps", f"{both.taken[0]} + {both.taken[1]} restarts", found, truth)
    for name, data in track(other_data().items(), "Ranking, both gaps"):
        yield from compared("both gaps", name, both.by(data, 0), found[0], truth)


def pairs(form: str, name: str, found: list[Found], truth: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """All pairs of some rankings."""
    for place, one in enumerate(found):
        for two in found[:place]:
            yield from compared(form, name, one, two, truth)


def compared(form: str, name: str, one: Found, two: Found, truth: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """What two rankings have in common, and what the first is worth, target by target."""
    both = agreement(one, two).join(worth(one, truth))
    for target, row in both.iterrows():
        yield {"form": form, "condition": name, "target": target, **row}


def coverage(found: list[Found]) -> float:
    """Share of the stated intervals, widened for the error of that mean, that hold the mean over all other blocks."""
    hits = []
    for target in found[0]:
        tables = [each[target] for each in found]
        values = np.stack([table["value"] for table in tables])
        for place, table in enumerate(tables):
            others = np.delete(values, place, axis=0).mean(axis=0)
            margin = (table["high"] - table["value"]) * np.sqrt(1 + 1 / (len(found) - 1))
            hits.append(np.abs(table["value"] - others) <= margin)
    return float(np.mean(hits))


def intervals(rankings: Rankings, generality: float) -> dict[int, float]:
    """Number of restarts to the coverage of the intervals that they state."""
    return {
        number: coverage([rankings.by(rankings.base, block, generality) for block in blocks(rankings.count, number)])
        for number in (rankings.size // 2, rankings.size)
    }


def show(table: pd.DataFrame, covered: dict[str, dict[int, float]], console: Console) -> None:
    """Print means over pairs and targets, one row per condition."""
    for form, part in table.groupby("form", sort=False):
        shown = Table("condition", "Kendall", "same choice", "weighted tau", "regret", box=None, padding=(0, 2, 0, 0))
        shown.title = f"{form}: mean over targets"
        for name, group in part.groupby("condition", sort=False):
            means = group[["kendall", "same choice", "weighted tau", "regret"]].mean()
            shown.add_row(str(name), *(f"{value:.2f}" for value in means))
        console.print(shown)
        if form in covered:
            told = (f"{share:.1%} ({number} restarts)" for number, share in covered[str(form)].items())
            console.print(f"95 % intervals of the {form} hold the mean of other restarts in {', '.join(told)}.")


def main() -> None:
    """Collect, rank under all conditions, write `stability.csv`, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="folder of the sources")
    parser.add_argument("results", help="folder of the evaluation")
    parser.add_argument("--family", default="gray28")
    parser.add_argument("--times", type=int, default=4, help="as many restarts as the default probe has, 2 at least")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Path(options.results)
    study = open_study(options.family, options.library, options.results)
    probes, truth = {probe.name: probe for probe in study.probes}, truth_of(results)
    collected = Collected(study, results / "signatures")
    gap, free = (Rankings(collected, probes[name], options.times) for name in ("default", "label_free"))
    forms = {"gap": (gap, 1.0), "plain gap": (gap, 0.0), "label-free gap": (free, 1.0)}
    found = [row for form, how in forms.items() for row in rows(form, *how, truth)]
    table = pd.DataFrame([*found, *rows_of_both(BothGaps(gap, free), truth)])
    table.to_csv(results / "stability.csv", index=False)
    covered = {form: intervals(*how) for form, how in forms.items()}
    pd.DataFrame(covered).sort_index().to_csv(results / "coverage.csv", index_label="restarts")
    show(table, covered, Console(width=120))


if __name__ == "__main__":
    main()
