"""The report of an evaluation: tables on the terminal, CSV files, a page in Markdown and a picture."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pge_lightning.app.bootstrap import bootstrap, compare_pairwise
from pge_lightning.app.cells import Cell
from pge_lightning.app.judge import (
    baselines,
    judge,
    overall,
    score_tables,
    seed_agreement,
    seed_tables,
    truth_table,
)
from pge_lightning.app.plot import BASELINE, kind_of, plot_estimators, plot_target, plot_targets
from pge_lightning.app.quality import CONVENTION
from pge_lightning.app.study import FROZEN, TRAINED, Study
from pge_lightning.record import SCRATCH

__all__ = ["report"]

# Column of the results, its heading, and how its values are written.
COLUMNS = (
    ("estimator", "estimator", "{}"),
    ("weighted_tau", "weighted\ntau", "{:+.2f}"),
    ("spearman", "Spearman", "{:+.2f}"),
    ("regret", "regret", "{:.1f}"),
    ("top_1", "top-1", "{:.2f}"),
    ("rank", "rank of\nchoice", "{:.1f}"),
    ("gain", "gain over\nscratch", "{:+.1f}"),
    ("targets", "targets", "{}"),
)
WIDE = (
    *COLUMNS,
    ("no_transfer_advised", "scratch advised", "{}"),
    ("no_transfer_precision", "of these right", "{:.2f}"),
)
SAID = (
    "Intervals: targets, and the seeds of each, drawn again with replacement.",
    "Advice to start from scratch is right where scratch gave at least as much as the choice.",
)
# What is said of fine-tunings.
ALONE = {TRAINED: "", FROZEN: " of the head alone"}
# Narrow, so that all measures fit on 80 columns.
_LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0)}


def report(study: Study, encoder: str, cells: Sequence[Cell], rankings: pd.DataFrame) -> float | None:
    """Compare rankings with what fine-tuning gave; print, and write everything into the folder of the results.

    ``truth.csv`` has what fine-tuning gave, ``rankings.csv`` what the estimators said, ``results.csv`` one row per
    target and estimator, ``comparisons.csv`` one per pair of estimators, ``estimators.csv`` and ``summary.md`` means
    over targets with their intervals. ``ranking.png`` is the picture of the first estimator, ``estimators.png`` of all.

    Args:
        study: The evaluation.
        encoder: Whether the encoder was trained or frozen.
        cells: All fine-tunings.
        rankings: All rankings, one below the other.

    Returns:
        Mean weighted tau of the first estimator; ``None`` where it is not defined.
    """
    folder, alone = study.folder(encoder), ALONE[encoder]
    truth = truth_table(cells)
    everyone = pd.concat([rankings, baselines(study.library, truth)], ignore_index=True)
    results = judge(truth, everyone)
    means = overall(results).merge(bootstrap(seed_tables(cells), score_tables(everyone)), on="estimator", how="left")
    kinds = {each.name: kind_of(each.estimator) for each in study.estimators}
    means["kind"] = means["estimator"].map(kinds).fillna(BASELINE)
    tables = {"truth": truth, "rankings": rankings, "results": results, "estimators": means}
    tables["comparisons"] = compare_pairwise(results)
    for name, frame in tables.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
    notes = _notes(study, alone, cells, results)
    _write_summary(folder / "summary.md", means, notes)
    _draw(folder / "ranking.png", study, truth, rankings)
    plot_estimators(folder / "estimators.png", means)
    console = Console()
    for target in study.targets:
        console.print(_target_table(study, alone, target, truth, rankings))
    console.print(_overall_table(means))
    console.print(*notes, f"Tables and pictures are in '{folder}'.", sep="\n", highlight=False)
    tau = float(means.loc[means["estimator"] == study.estimators[0].name, "weighted_tau"].iloc[0])
    return None if math.isnan(tau) else tau


def _notes(study: Study, alone: str, cells: Sequence[Cell], results: pd.DataFrame) -> list[str]:
    failed = sum(bool(cell.reason) for cell in cells)
    notes = [
        f"{len(study.sources)} sources, {len(study.targets)} target{'s' * (len(study.targets) > 1)}, "
        f"{len(cells)} fine-tunings{alone} over {len(study.seeds)} seed{'s' * (len(study.seeds) > 1)}"
        + (f", of which {failed} failed." if failed else "."),
        CONVENTION,
    ]
    agreement = seed_agreement(cells)
    if not math.isnan(agreement):
        notes.append(
            f"One half of the seeds ranks the sources as the other half does to a Spearman of {agreement:.2f}."
        )
    for cell in {cell.target: cell for cell in cells if cell.reason}.values():
        notes.append(f"Fine-tuning '{cell.target}' from '{cell.source}' failed: {cell.reason}")
    for name, part in results[results["reason"] != ""].groupby("estimator", sort=False):
        notes.append(f"Not ranked by {name} for {', '.join(part['target'])}: {part['reason'].iloc[0]}")
    return notes


def _draw(path: Path, study: Study, truth: pd.DataFrame, rankings: pd.DataFrame) -> None:
    name = study.estimators[0].name
    draw = plot_targets if len(study.targets) > 1 else plot_target
    draw(path, truth, rankings[rankings["estimator"] == name], name)


def _target_table(study: Study, alone: str, target: str, truth: pd.DataFrame, rankings: pd.DataFrame) -> Table:
    """What fine-tuning gave from each source, the best first, beside each estimator's estimate and rank."""
    names = [estimator.name for estimator in study.estimators]
    table = Table(title=f"Target '{target}': estimate (rank), and what fine-tuning{alone} gave", **_LOOK)
    for heading in ("source", *names, study.cfg.evaluate.metric, ""):
        table.add_column(heading, no_wrap=heading not in names)
    ranked, gave = rankings[rankings["target"] == target], truth[truth["target"] == target]
    advice = ranked.loc[ranked["estimator"] == names[0], "advice"].iloc[0]
    columns = gave[["source", "mean", "standard_deviation", "reason"]]
    for source, mean, spread, reason in columns.itertuples(index=False):
        lines = [_line(ranked, name, source) for name in names]
        marks = ["choice"] if lines[0].endswith("(1)") else []
        marks += ["advised"] if source == SCRATCH == advice else []
        marks += ["best"] if mean == gave["mean"].max() else []
        value = "-" if math.isnan(mean) else f"{mean:.3f}" + ("" if math.isnan(spread) else f" ± {spread:.3f}")
        table.add_row(source, *lines, value, "failed" if reason else ", ".join(marks))
    return table


def _line(ranked: pd.DataFrame, estimator: str, source: str) -> str:
    """Gap and rank of a source; a dash for scratch, and where there is none."""
    found = ranked[(ranked["estimator"] == estimator) & (ranked["source"] == source)]
    if found.empty or found["estimate"].isna().any():
        return "-"
    return f"{found['estimate'].iloc[0]:.3f} ({found['rank'].iloc[0]})"


def _cells(means: pd.DataFrame, columns: Sequence[tuple[str, str, str]]) -> list[list[str]]:
    """The overall table as text; a dash where a measure is not defined."""
    rows = means[[name for name, _, _ in columns]].itertuples(index=False)
    forms = [form for _, _, form in columns]
    return [
        ["-" if pd.isna(value) else form.format(value) for form, value in zip(forms, row, strict=True)] for row in rows
    ]


def _overall_table(means: pd.DataFrame) -> Table:
    table = Table(title="How well the sources were ranked, mean over targets", **_LOOK)
    for place, (_, heading, _) in enumerate(COLUMNS):
        table.add_column(heading, justify="right" if place else "left", no_wrap=place > 0)
    for row in _cells(means, COLUMNS):
        table.add_row(*row)
    return table


def _write_summary(path: Path, means: pd.DataFrame, notes: Sequence[str]) -> None:
    headings = [heading.replace("\n", " ") for _, heading, _ in WIDE]
    rows = _cells(means, WIDE)
    for measure, form in (("regret", "{:.1f} to {:.1f}"), ("weighted_tau", "{:+.2f} to {:+.2f}")):
        place = [name for name, _, _ in WIDE].index(measure) + 1
        headings.insert(place, "95 %")
        ends = means[[f"{measure}_low", f"{measure}_high"]].itertuples(index=False)
        for row, (low, high) in zip(rows, ends, strict=True):
            row.insert(place, "-" if math.isnan(low) else form.format(low, high))
    lines = [f"| {' | '.join(row)} |" for row in (headings, ["---", *["---:"] * (len(headings) - 1)], *rows)]
    text = "\n".join([*lines, "", *notes, *SAID, ""])
    path.write_text(text, encoding="utf-8")
