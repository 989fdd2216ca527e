"""The report of an evaluation: tables on the terminal, CSV files, a page in Markdown and a picture."""

import math
from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pge_lightning.app.cells import Cell
from pge_lightning.app.judge import baselines, judge, overall, seed_agreement, truth_table
from pge_lightning.app.plot import plot_target, plot_targets
from pge_lightning.app.quality import CONVENTION
from pge_lightning.app.study import Study
from pge_lightning.app.tasks import SCRATCH

__all__ = ["report"]

# Column of the results, its heading, and how its values are written.
COLUMNS = (
    ("estimator", "estimator", "{}"),
    ("weighted_tau", "weighted tau", "{:+.2f}"),
    ("spearman", "Spearman", "{:+.2f}"),
    ("regret", "regret", "{:.1f}"),
    ("top_1", "top-1", "{:.2f}"),
    ("rank", "rank of choice", "{:.1f}"),
    ("gain", "gain over scratch", "{:+.1f}"),
    ("targets", "targets", "{}"),
)


def report(study: Study, cells: Sequence[Cell], rankings: pd.DataFrame) -> float | None:
    """Compare rankings with what fine-tuning gave; print, and write everything into the folder of the results.

    ``truth.csv`` has what fine-tuning gave, ``rankings.csv`` what the estimators said, ``results.csv`` one row per
    target and estimator, ``summary.md`` means over targets, and ``ranking.png`` is the picture.

    Args:
        study: The evaluation.
        cells: All fine-tunings.
        rankings: All rankings, one below the other.

    Returns:
        Mean weighted tau of the first estimator; ``None`` where it is not defined.
    """
    truth = truth_table(cells)
    results = judge(truth, pd.concat([rankings, baselines(study.library, truth)], ignore_index=True))
    means = overall(results)
    for name, frame in (("truth", truth), ("rankings", rankings), ("results", results)):
        frame.to_csv(study.results / f"{name}.csv", index=False)
    notes = _notes(study, cells)
    _write_summary(study, means, notes)
    _draw(study, truth, rankings)
    console = Console()
    for target in study.targets:
        console.print(_target_table(study, target, truth, rankings))
    console.print(_overall_table(means))
    console.print(*notes, f"Tables and picture are in '{study.results}'.", sep="\n", highlight=False)
    tau = float(means.loc[means["estimator"] == study.estimators[0].name, "weighted_tau"].iloc[0])
    return None if math.isnan(tau) else tau


def _notes(study: Study, cells: Sequence[Cell]) -> list[str]:
    failed = sum(bool(cell.reason) for cell in cells)
    notes = [
        f"{len(study.sources)} sources, {len(study.targets)} target{'s' * (len(study.targets) > 1)}, "
        f"{len(cells)} fine-tunings over {len(study.seeds)} seed{'s' * (len(study.seeds) > 1)}"
        + (f", of which {failed} failed." if failed else "."),
        CONVENTION,
    ]
    agreement = seed_agreement(cells)
    if not math.isnan(agreement):
        notes.append(f"One half of the fine-tuning seeds ranks the sources as the other does to Spearman {agreement:.2f}.")
    return notes


def _draw(study: Study, truth: pd.DataFrame, rankings: pd.DataFrame) -> None:
    name = study.estimators[0].name
    draw = plot_targets if len(study.targets) > 1 else plot_target
    draw(study.results / "ranking.png", truth, rankings[rankings["estimator"] == name], name)


def _target_table(study: Study, target: str, truth: pd.DataFrame, rankings: pd.DataFrame) -> Table:
    """What fine-tuning gave from each source, the best first, beside each estimator's gap and rank."""
    names = [estimator.name for estimator in study.estimators]
    table = Table("source", title=f"Target '{target}'", box=SIMPLE_HEAD)
    for heading in (*(f"{name}: gap (rank)" for name in names), f"{study.cfg.evaluate.metric} after fine-tuning", ""):
        table.add_column(heading)
    ranked = rankings[rankings["target"] == target]
    gave = truth[truth["target"] == target]
    for source, mean, spread, reason in gave[["source", "mean", "standard_deviation", "reason"]].itertuples(index=False):
        lines = [_line(ranked, name, source) for name in names]
        marks = [f"choice of {name}" for name, line in zip(names, lines, strict=True) if line.endswith("(1)")]
        marks += ["best"] if mean == gave["mean"].max() else []
        value = "-" if math.isnan(mean) else f"{mean:.3f}" + ("" if math.isnan(spread) else f" ± {spread:.3f}")
        table.add_row(source, *lines, value, ", ".join([*marks, reason] if reason else marks))
    return table


def _line(ranked: pd.DataFrame, estimator: str, source: str) -> str:
    """Gap and rank of a source; a dash for scratch, and where there is none."""
    found = ranked[(ranked["estimator"] == estimator) & (ranked["source"] == source)]
    if found.empty or found["gap"].isna().any():
        return "-"
    return f"{found['gap'].iloc[0]:.3f} ({found['rank'].iloc[0]})"


def _cells(means: pd.DataFrame) -> list[list[str]]:
    """The overall table as text; a dash where a measure is not defined."""
    rows = means[[name for name, _, _ in COLUMNS]].itertuples(index=False)
    forms = [form for _, _, form in COLUMNS]
    return [["-" if pd.isna(value) else form.format(value) for form, value in zip(forms, row, strict=True)] for row in rows]


def _overall_table(means: pd.DataFrame) -> Table:
    table = Table(title="How well the sources were ranked, mean over targets", box=SIMPLE_HEAD)
    for place, (_, heading, _) in enumerate(COLUMNS):
        table.add_column(heading, justify="right" if place else "left", no_wrap=not place)
    for row in _cells(means):
        table.add_row(*row)
    return table


def _write_summary(study: Study, means: pd.DataFrame, notes: Sequence[str]) -> None:
    head = [[heading for _, heading, _ in COLUMNS], ["---", *["---:"] * (len(COLUMNS) - 1)]]
    lines = [f"| {' | '.join(row)} |" for row in (*head, *_cells(means))]
    text = "\n".join([*lines, "", *notes, ""])
    (study.results / "summary.md").write_text(text, encoding="utf-8")
