"""Is it the same ranking again? Other restarts, target samples, batches, class numbers and numbers of restarts.

PGE_DATA=FOLDER pge experiment=gray28
PGE_DATA=FOLDER python examples/benchmarks/stability.py outputs/gray28/sources outputs/gray28/results

Every source is collected again under other seeds of its restarts and other recipes, at the smallest rung. A ranking
under a changed condition is compared with the one under the first seed, target by target: Kendall's tau between the two
orders, the share of equal choices, and what the changed ranking itself is worth against what fine-tuning gave.
Intervals are held against the spread that is seen: how often does a stated 95 % interval hold the mean over all other
seeds? It goes on where it was stopped.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from finished import open_study
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy import stats

from pge_lightning.app.build import build_data
from pge_lightning.app.quality import assess
from pge_lightning.app.study import Study
from pge_lightning.app.tasks import seeded_model
from pge_lightning.collect import collect_signature
from pge_lightning.estimators import GapEstimator, Target
from pge_lightning.library import Library
from pge_lightning.probe import Probe
from pge_lightning.rank import rank_sources
from pge_lightning.record import SCRATCH

SEEDS = range(8)
FORMS = {"gap": 1.0, "plain gap": 0.0}


def conditions(probe: Probe, budget: int) -> dict[str, tuple[Probe, dict[str, object]]]:
    """Name of a condition to its probe, and what differs in the target's data."""
    base = replace(probe, budgets=(budget,))

    def recipe(name: str, **changes: object) -> Probe:
        return replace(base, name=name, **changes)  # type: ignore[arg-type]  # fields of several types

    seeds = {f"restarts of seed {seed}": (recipe(f"seed{seed}", seed=seed), {}) for seed in SEEDS}
    first = seeds["restarts of seed 0"][0]
    return seeds | {
        "other target samples (1)": (first, {"draw": 1}),
        "other target samples (2)": (first, {"draw": 2}),
        "other class numbers of the target": (first, {"permute_classes": 1000}),
        "batches of 32": (recipe("batch32", batch_size=32), {}),
        "batches of 128": (recipe("batch128", batch_size=128), {}),
        "2 restarts": (recipe("restarts2", restarts=2), {}),
        "4 restarts": (recipe("restarts4", restarts=4), {}),
        "16 restarts": (recipe("restarts16", restarts=16), {}),
        "15 steps": (recipe("steps15", steps=15), {}),
        "30 steps": (recipe("steps30", steps=30), {}),
        "120 steps": (recipe("steps120", steps=120), {}),
    }


def collect_sources(study: Study, library: Library, probes: list[Probe], budget: int) -> None:
    """Give every source of the study a signature per probe, in another library."""
    for name in track(study.sources, "Collecting sources"):
        held = library.open(name).signatures if name in library.names() else ()
        left = [probe for probe in probes if not any(entry.recipe == probe.recipe for entry in held)]
        if left:
            job = study.source_job(name)
            datamodule = build_data(job.data)
            model = seeded_model(job, datamodule)
            files = [entry.file for entry in held]
            for probe in left:
                batches = datamodule.train_dataloader()
                signature = collect_signature(model, batches, probe=probe, budget=budget, encoder="encoder")
                files.append(library.put_signature(name, signature))
            source = study.library.open(name)
            library.register(name, source.load_weights(), source.facts, files, overwrite=True)


def rank(study: Study, library: Library, name: str, probe: Probe, data: dict[str, object]) -> dict[str, pd.DataFrame]:
    """Form of the gap to the estimates of all sources for a target."""
    job: DictConfig = study.target_job(name, study.seeds[0])
    job.data = OmegaConf.merge(job.data, data)
    datamodule = build_data(job.data)
    model = seeded_model(job, datamodule)
    target = Target(model, datamodule, library, encoder="encoder", exclude=[name])
    found = {}
    for form, generality in FORMS.items():
        ranking = rank_sources(target, GapEstimator(probe, generality=generality, name="gap"))
        lines = {line.name: line.estimate for line in ranking.sources if line.estimate is not None}
        found[form] = pd.DataFrame({key: [each.value, each.low, each.high] for key, each in lines.items()}).T
        target.forget()
    return found


def compared(changed: pd.DataFrame, base: pd.DataFrame, truth: pd.Series) -> dict[str, float]:
    """How alike two rankings are, and what the changed one is worth."""
    score, before = -changed[0], -base[0].reindex(changed.index)
    gave = truth.reindex(changed.index)
    return {
        "kendall": float(stats.kendalltau(score, before).statistic),
        "same choice": float(score.idxmax() == before.idxmax()),
        "weighted tau": assess(score, gave).weighted_tau,
        "regret": assess(score, gave).regret,
    }


def coverage(rankings: dict[str, pd.DataFrame]) -> float:
    """Share of the stated intervals that hold the mean over all other seeds."""
    values = np.stack([table[0] for table in rankings.values()])
    hits = []
    for place, table in enumerate(rankings.values()):
        others = np.delete(values, place, axis=0).mean(axis=0)
        hits.append((table[1].to_numpy() <= others) & (others <= table[2].to_numpy()))
    return float(np.mean(hits))


def show(rows: pd.DataFrame, covered: dict[str, list[float]], console: Console) -> None:
    """Print means over targets, one row per condition; seeds other than the first in one."""
    rows = rows.assign(
        condition=rows["condition"].where(~rows["condition"].str.startswith("restarts of"), "new restarts")
    )
    for form, part in rows.groupby("form", sort=False):
        table = Table("condition", "Kendall", "same choice", "weighted tau", "regret", box=None, padding=(0, 2, 0, 0))
        table.title = f"{form}: against the first seed, mean over targets"
        for name, group in part.groupby("condition", sort=False):
            means = group[["kendall", "same choice", "weighted tau", "regret"]].mean()
            table.add_row(str(name), *(f"{value:.2f}" for value in means))
        console.print(table)
        console.print(
            f"95 % intervals of the {form} hold the mean of the other seeds in {np.mean(covered[str(form)]):.1%}."
        )


def main() -> None:
    """Collect, rank under all conditions, write `stability.csv` into the results, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="folder of the sources")
    parser.add_argument("results", help="folder of the evaluation")
    parser.add_argument("--experiment", default="gray28")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = open_study(options.experiment, options.library, options.results)
    probe = next(each for each in study.probes if each.name == "default")
    budget = probe.budgets[0]
    plan = conditions(probe, budget)
    library = Library(Path(options.results) / "stability")
    collect_sources(study, library, list({each.name: each for each, _ in plan.values()}.values()), budget)
    table = pd.read_csv(Path(options.results) / "truth.csv", keep_default_na=False, na_values=[""])
    truth = table[table["source"] != SCRATCH].pivot(index="target", columns="source", values="mean")
    rows, covered = [], {form: [] for form in FORMS}
    for name in track(study.targets, "Ranking for targets"):
        found = {condition: rank(study, library, name, *how) for condition, how in plan.items()}
        for form in FORMS:
            rankings = {condition: each[form].sort_index() for condition, each in found.items()}
            base = rankings["restarts of seed 0"]
            rows += [
                {"form": form, "target": name, "condition": condition, **compared(each, base, truth.loc[name])}
                for condition, each in rankings.items()
                if each is not base
            ]
            seeds = {condition: each for condition, each in rankings.items() if condition.startswith("restarts of")}
            covered[form].append(coverage(seeds))
        pd.DataFrame(rows).to_csv(Path(options.results) / "stability.csv", index=False)
    show(pd.DataFrame(rows), covered, Console(width=120))


if __name__ == "__main__":
    main()
