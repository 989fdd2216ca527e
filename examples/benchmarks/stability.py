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

from pge_lightning.probe import Probe, Walk

FORMS = {"gap": 1.0, "plain gap": 0.0}
Found = dict[str, pd.DataFrame]


def in_bfloat16(module: Any, batch: Any) -> torch.Tensor:
    """A loss under mixed precision."""
    with torch.autocast("cpu", torch.bfloat16):
        loss: torch.Tensor = torch.nn.functional.cross_entropy(module(batch[0]), batch[1])
    return loss


def conditions(walk: Walk) -> dict[str, tuple[Walk, dict[str, Any], Any]]:
    """Name of a condition to how the target is walked, what differs in its data, and its loss."""
    walks = {f"{steps} steps": replace(walk, steps=steps) for steps in (5, 10, 15, 20, 45, 60)}
    walks |= {f"batches of {size}": replace(walk, batch_size=size) for size in (8, 16, 64)}
    walks["rate 5e-3"] = replace(walk, lr=5e-3)
    data = {f"other target samples ({draw})": {"draw": draw} for draw in (1, 2)}
    data["other class numbers of the target"] = {"permute_classes": 1000}
    data |= {f"{labels} target labels": {"labels": labels} for labels in (50, 100, 1000)}
    found: dict[str, tuple[Walk, dict[str, Any], Any]] = {name: (each, {}, None) for name, each in walks.items()}
    found |= {name: (walk, each, None) for name, each in data.items()}
    return found | {"mixed precision (bfloat16)": (walk, {}, in_bfloat16)}


class Rankings:
    """Rankings by any restarts under any condition."""

    def __init__(self, collected: Collected, probe: Probe, count: int) -> None:
        self.collected, self.probe = collected, replace(probe, restarts=count)
        names = track(collected.study.sources, "Collecting sources")
        self.sources = {name: collected.source(name, self.probe) for name in names}

    def targets(self, walk: Walk, data: dict[str, Any], loss_fn: Any, count: int) -> dict[str, Any]:
        """Signatures of all targets, with the first `count` restarts."""
        probe = replace(self.probe, target=walk, restarts=count)
        return {name: self.collected.target(name, probe, data, loss_fn) for name in self.collected.study.targets}

    def by(self, targets: dict[str, Any], restarts: range, form: str) -> Found:
        """The ranking by some restarts."""
        sides = ({name: some(each, restarts) for name, each in side.items()} for side in (targets, self.sources))
        return estimates(*sides, FORMS[form])


def rows(rankings: Rankings, walk: Walk, size: int, truth: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """One row per form, condition, pair of rankings and target."""
    count = rankings.probe.restarts or 0
    base = rankings.targets(walk, {}, None, count)
    for form in FORMS:
        for number in sorted({size // 8, size // 4, size // 2, size, 2 * size} - {0, 1}):
            found = [rankings.by(base, block, form) for block in blocks(count, number)]
            name = "new restarts" if number == size else f"{number} restarts"
            for place, one in enumerate(found):
                for two in found[:place]:
                    yield from compared(form, name, one, two, truth)
        first = rankings.by(base, range(size), form)
        for name, changes in track(conditions(walk).items(), f"Ranking, {form}"):
            yield from compared(
                form, name, rankings.by(rankings.targets(*changes, size), range(size), form), first, truth
            )


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


def show(table: pd.DataFrame, covered: dict[str, dict[int, float]], console: Console) -> None:
    """Print means over pairs and targets, one row per condition."""
    for form, part in table.groupby("form", sort=False):
        shown = Table("condition", "Kendall", "same choice", "weighted tau", "regret", box=None, padding=(0, 2, 0, 0))
        shown.title = f"{form}: mean over targets"
        for name, group in part.groupby("condition", sort=False):
            means = group[["kendall", "same choice", "weighted tau", "regret"]].mean()
            shown.add_row(str(name), *(f"{value:.2f}" for value in means))
        console.print(shown)
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
    probe = next(each for each in study.probes if each.name == "default")
    walk, size = probe.target, probe.restarts
    if walk is None or size is None:
        raise ValueError("Expected the family's default probe to have restarts, and a walk for targets.")
    count = options.times * size
    rankings = Rankings(Collected(study, results / "signatures"), probe, count)
    table = pd.DataFrame(rows(rankings, walk, size, truth_of(results)))
    table.to_csv(results / "stability.csv", index=False)
    base = rankings.targets(walk, {}, None, count)
    covered = {
        form: {
            part: coverage([rankings.by(base, block, form) for block in blocks(count, part)])
            for part in (size // 2, size)
        }
        for form in FORMS
    }
    pd.DataFrame(covered).to_csv(results / "coverage.csv", index_label="restarts")
    show(table, covered, Console(width=120))


if __name__ == "__main__":
    main()
