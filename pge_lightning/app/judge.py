"""From finished cells and rankings to tables: what fine-tuning gave, and how well each estimator foresaw it."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

import pandas as pd

from pge_lightning.app.cells import Cell
from pge_lightning.app.quality import Quality, agreement, assess, expected_at_random
from pge_lightning.app.tasks import SCRATCH
from pge_lightning.errors import PGEError
from pge_lightning.library import Library

__all__ = [
    "MEASURES",
    "RANDOM",
    "baselines",
    "judge",
    "overall",
    "score_tables",
    "seed_agreement",
    "seed_tables",
    "truth_table",
]

RANDOM, SIZE, METRIC = "random", "source size", "own metric"
MEASURES = ["weighted_tau", "spearman", "regret", "top_1", "rank", "gain"]


def truth_table(cells: Sequence[Cell]) -> pd.DataFrame:
    """What fine-tuning gave, over seeds.

    Args:
        cells: Fine-tunings.

    Returns:
        One row per target and source, scratch among them: columns target, source, mean, standard_deviation (of
        single seeds; nan for one), seeds, failed and reason, the best of a target first.

    Raises:
        PGEError: If every fine-tuning failed.
    """
    if all(cell.reason for cell in cells):
        raise PGEError(f"Expected at least one fine-tuning to succeed, but all {len(cells)} failed. {cells[0].reason}")
    groups = pd.DataFrame(map(asdict, cells)).astype({"value": float}).groupby(["target", "source"], sort=False)
    table = groups.agg(
        mean=("value", "mean"),
        standard_deviation=("value", "std"),
        seeds=("value", "count"),
        failed=("reason", lambda reasons: int((reasons != "").sum())),
        reason=("reason", "max"),
    ).reset_index()
    table = table.sort_values("mean", ascending=False, kind="stable")
    order = {target: place for place, target in enumerate(dict.fromkeys(cell.target for cell in cells))}
    return table.sort_values("target", key=lambda names: names.map(order), kind="stable").reset_index(drop=True)


def seed_agreement(cells: Sequence[Cell]) -> float:
    """Mean over targets of how well one half of the seeds ranks the other; nan for a single seed.

    Args:
        cells: Fine-tunings.

    Returns:
        Spearman's correlation, in [-1, 1].
    """
    tables = [table for table in seed_tables(cells).values() if len(table) > 1]
    return float(pd.Series([agreement(table) for table in tables]).mean())


def seed_tables(cells: Sequence[Cell]) -> dict[str, pd.DataFrame]:
    """What every seed of fine-tuning gave.

    Args:
        cells: Fine-tunings.

    Returns:
        Target to ``[sources, seeds]``; scratch, and sources that failed with a seed, are left out.
    """
    frame = pd.DataFrame([asdict(cell) for cell in cells if cell.source != SCRATCH]).astype({"value": float})
    groups = frame.groupby("target", sort=False)
    return {str(name): part.pivot(index="source", columns="seed", values="value").dropna() for name, part in groups}


def score_tables(estimates: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What all estimators said.

    Args:
        estimates: Rankings, one row per target, estimator and source.

    Returns:
        Target to scores ``[sources, estimators]``, higher for better.
    """
    groups = estimates.groupby("target", sort=False)
    order = list(dict.fromkeys(estimates["estimator"]))
    return {
        str(name): part.pivot(index="source", columns="estimator", values="score").reindex(columns=order)
        for name, part in groups
    }


def baselines(library: Library, truth: pd.DataFrame) -> pd.DataFrame:
    """What anybody knows without an estimator: how many samples a source was trained on, and how well it did there.

    Args:
        library: The library of the sources.
        truth: What :func:`truth_table` gave.

    Returns:
        Columns target, estimator, source, score and status, as of a ranking.
    """
    rows = []
    for target, source in truth[["target", "source"]].itertuples(index=False):
        with suppress(PGEError):  # scratch, and sources that cannot be read, have no such facts
            facts = library.open(source).facts
            known = {SIZE: facts.samples, METRIC: facts.value}
            rows += [(target, name, source, score, "ok") for name, score in known.items() if score is not None]
    return pd.DataFrame(rows, columns=["target", "estimator", "source", "score", "status"])


def judge(truth: pd.DataFrame, estimates: pd.DataFrame) -> pd.DataFrame:
    """How well each estimator foresaw each target. Scratch takes no part but as what a gain is measured against.

    Args:
        truth: What :func:`truth_table` gave.
        estimates: Rankings of all estimators and baselines, one row per target, estimator and source.

    Returns:
        One row per target and estimator, a random order last: columns target, estimator, choice, the measures of
        :class:`~pge_lightning.app.quality.Quality`, gain (points of the choice over scratch), sources, reason, advice
        (transfer or scratch; empty where there is none).
    """
    rows = []
    for target, part in truth.groupby("target", sort=False):
        means = part.set_index("source")["mean"].dropna()
        scratch, gave = means.get(SCRATCH, math.nan), means.drop(SCRATCH, errors="ignore")
        for name, ranking in estimates[estimates["target"] == target].groupby("estimator", sort=False):
            advice = next(iter(ranking.get("advice", pd.Series(dtype=str)).dropna()), "")
            rows.append({"target": target, "estimator": name, **_row(ranking, gave, scratch), "advice": advice})
        if len(gave) > 1:
            chance = _measures(expected_at_random(gave), gave, scratch)
            rows.append({"target": target, "estimator": RANDOM, "choice": "", **chance, "sources": len(gave)})
    return pd.DataFrame(rows).fillna({"reason": "", "advice": ""})


def overall(results: pd.DataFrame) -> pd.DataFrame:
    """Means over targets.

    Args:
        results: What :func:`judge` gave.

    Returns:
        One row per estimator in the order of `results`: the measures, the number of targets they come from,
        no_transfer_advised (targets for which scratch was advised) and no_transfer_precision (share of these on which
        scratch was at least as good as the choice; nan where there are none).
    """
    groups = results.groupby("estimator", sort=False)
    means = groups[MEASURES].mean().assign(targets=groups["regret"].count())
    advised = results[(results["advice"] == SCRATCH) & results["gain"].notna()]
    right = advised["gain"].round(9).le(0).groupby(advised["estimator"])  # rounded, because equal means differ by sums
    return means.assign(
        no_transfer_advised=right.size().reindex(means.index, fill_value=0), no_transfer_precision=right.mean()
    ).reset_index()


def _row(ranking: pd.DataFrame, gave: pd.Series, scratch: float) -> dict[str, object]:
    scores = ranking.set_index("source")["score"].astype(float).dropna()
    scores = scores[scores.index.isin(gave.index)]
    if len(scores) < 2:
        reasons = [str(reason) for reason in ranking.get("reason", pd.Series(dtype=str)).dropna() if reason]
        reason = reasons[0] if reasons else "fewer than two sources have both a score and a result"
        return {"choice": "", "sources": len(scores), "reason": reason}
    # A source without a score stands last, as in the selector's table.
    filled = scores.reindex(gave.index).fillna(scores.min() - 1)
    choices = [str(source) for source in gave.index if filled[source] == filled.max()]
    measures = _measures(assess(filled, gave), gave, scratch)
    return {"choice": ", ".join(choices), **measures, "sources": len(scores), "reason": ""}


def _measures(quality: Quality, gave: pd.Series, scratch: float) -> dict[str, float]:
    return {**asdict(quality), "gain": 100 * (float(gave.max()) - scratch) - quality.regret}
