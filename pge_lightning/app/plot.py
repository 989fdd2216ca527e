"""The pictures of an evaluation: what an estimator said beside what fine-tuning gave, and all estimators in a row."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pge_lightning.app.tasks import SCRATCH
from pge_lightning.estimators.estimator import Estimator
from pge_lightning.estimators.pipeline import Pipeline

__all__ = ["BASELINE", "DPI", "KINDS", "called", "kind_of", "plot_estimators", "plot_target", "plot_targets"]

# Blue, vermilion and bluish green of the palette of Okabe and Ito, which all kinds of colour vision tell apart.
CHOICE, OTHERS, THIRD, BASE = "#D55E00", "#0072B2", "#009E73", "#555555"
DPI = 150
NONE, SOME, ALL, BASELINE = "opens no source", "opens some sources", "opens all sources", "baseline"
# Kind of an estimator to its colour and marker.
KINDS = {NONE: (OTHERS, "o"), SOME: (CHOICE, "D"), ALL: (THIRD, "s"), BASELINE: (BASE, "^")}
# Selectors whose printed names are more than their words.
NAMES = {
    "gaussian_bhattacharyya": "GBC",
    "h_score": "H-score",
    "knn": "nearest neighbours",
    "label_free": "label-free gap",
    "leep": "LEEP",
    "log_me": "LogME",
    "nce": "NCE",
    "nleep": "NLEEP",
    "otdd": "OTDD",
    "pactran": "PACTran",
    "parc": "PARC",
    "regularized_h_score": "H-score, regularised",
    "sfda": "SFDA",
    "standing": "history",
    "task2vec": "Task2Vec",
    "trans_rate": "TransRate",
}


def called(estimator: str) -> str:
    """What pictures call an estimator.

    Args:
        estimator: Its name in tables.

    Returns:
        The name in print.

    Examples:
        >>> called("log_me"), called("plain_gap")
        ('LogME', 'plain gap')
    """
    return NAMES.get(estimator, estimator.replace("_", " "))


def kind_of(estimator: Estimator) -> str:
    """How many sources an estimator opens for a target.

    Args:
        estimator: Any estimator.

    Returns:
        A key of :data:`KINDS`; a baseline is one that looks at no data, but at what is known of a source at most.
    """
    if "weights" in estimator.needs:
        return SOME if isinstance(estimator, Pipeline) and "weights" not in estimator.first.needs else ALL
    return BASELINE if estimator.needs <= {"facts"} else NONE


def plot_target(path: Path, truth: pd.DataFrame, ranking: pd.DataFrame, estimator: str) -> Figure:
    """Draw what an estimator said of every source, the best on top, beside what fine-tuning from it gave.

    Args:
        path: The PNG file to write.
        truth: What fine-tuning gave on one target: columns source, mean, standard_deviation.
        ranking: The ranking for that target: columns source, estimate, score, low, high.
        estimator: What the ranking is called.

    Returns:
        The figure that was written.
    """
    lines = ranking.dropna(subset=["estimate"]).merge(truth.drop(columns=["reason"]), on="source", how="left")
    lines = lines.sort_values("score", kind="stable")
    figure = Figure(figsize=(9, 1.4 + 0.36 * max(len(lines), 3)), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    spread = np.array([lines["estimate"] - lines["low"], lines["high"] - lines["estimate"]], dtype=float)
    _dots(left, lines, "estimate", spread)
    _dots(right, lines, "mean", lines["standard_deviation"].to_numpy(dtype=float))
    left.set(xlabel=f"{estimator}, with 95 % interval", title="before: best on top")
    right.set(xlabel="mean accuracy and standard deviation over seeds", title="after fine-tuning")
    scratch = truth.loc[truth["source"] == SCRATCH, "mean"].dropna()
    if len(scratch):
        right.axvline(float(scratch.iloc[0]), color=BASE, linestyle="--", label="from scratch")
        right.legend(loc="best", frameon=False)
    left.set_yticks(range(len(lines)), [str(name) for name in lines["source"]])
    figure.suptitle(f"Sources for the target '{truth['target'].iloc[0]}'")
    figure.savefig(path)
    return figure


def plot_targets(path: Path, truth: pd.DataFrame, rankings: pd.DataFrame, estimator: str) -> Figure:
    """Draw two heat maps side by side, targets down and sources across: closeness, and what fine-tuning gave.

    Both are standardised per target, as sources are compared within a target only; dark is better in both.

    Args:
        path: The PNG file to write.
        truth: What fine-tuning gave: columns target, source, mean.
        rankings: The rankings: columns target, source, score.
        estimator: What the rankings are called.

    Returns:
        The figure that was written.
    """
    targets = list(dict.fromkeys(truth["target"]))
    known = dict.fromkeys([*rankings["source"], *truth["source"]])
    sources = sorted((name for name in known if name != SCRATCH), key=lambda name: (name not in targets, name))
    size = (max(9.0, 3.2 + 0.48 * len(sources)), 2.8 + max(0.28 * len(targets), 1.2))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, frame, value, title in (
        (left, rankings, "score", f"before: closeness by {estimator}"),
        (right, truth, "mean", "after fine-tuning: accuracy"),
    ):
        table = frame.pivot_table(index="target", columns="source", values=value, dropna=False)
        table = table.reindex(index=targets, columns=sources).astype(float)
        scaled = table.sub(table.mean(axis=1), axis=0).div(table.std(axis=1), axis=0)
        image = axes.imshow(scaled.to_numpy(), cmap="cividis_r", vmin=-2, vmax=2, aspect="auto")
        _mark_best(axes, scaled)
        axes.set_xticks(range(len(sources)), sources, rotation=90)
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("source")
    left.set_yticks(range(len(targets)), targets)
    left.set_ylabel("target")
    figure.colorbar(image, ax=[left, right], label="standard deviations\nfrom the row's mean")
    figure.suptitle("Dark is better within a row, a star marks its best source; white: no pair", fontsize="medium")
    figure.savefig(path)
    return figure


def plot_estimators(path: Path, table: pd.DataFrame, title: str = "Estimators, mean over targets") -> Figure:
    """Draw one row per estimator, the highest weighted tau on top: weighted tau on the left, regret on the right.

    Args:
        path: The PNG file to write.
        table: One row per estimator: columns estimator, kind (a key of :data:`KINDS`), weighted_tau and regret, each
            also with the ends of its interval, such as regret_low and regret_high; nan where there is none.
        title: Stands above.

    Returns:
        The figure that was written.
    """
    rows = table.sort_values("weighted_tau", kind="stable", na_position="first").reset_index(drop=True)
    figure = Figure(figsize=(9, 1.7 + 0.21 * max(len(rows), 6)), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, value in ((left, "weighted_tau"), (right, "regret")):
        for kind, (color, marker) in KINDS.items():
            part = rows[rows["kind"] == kind]
            axes.hlines(part.index, part[f"{value}_low"], part[f"{value}_high"], color=color, linewidth=1.5)
            if len(part):
                axes.plot(part[value], part.index, marker, color=color, label=kind)
        axes.grid(alpha=0.3)
    left.axvline(0, color=BASE, linewidth=0.8)
    left.set_title("more is better", fontsize="medium")
    left.set(xlabel="weighted tau", ylim=(-0.7, len(rows) - 0.3))
    left.set_yticks(range(len(rows)), [called(str(name)) for name in rows["estimator"]])
    right.set_title("less is better", fontsize="medium")
    right.set_xlabel("regret in points (root scale)")
    _take_roots(right, float(np.nanmax([rows["regret"].max(), rows["regret_high"].max(), 1.0])))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(KINDS), frameon=False)
    figure.suptitle(f"{title}, with 95 % intervals")
    figure.savefig(path)
    return figure


def _dots(axes: Axes, lines: pd.DataFrame, value: str, spread: np.ndarray) -> None:
    """One dot per source with its error bar; the choice stands out by colour and shape."""
    errors = np.broadcast_to(np.nan_to_num(spread), (2, len(lines)))
    for place, number in enumerate(lines[value].to_numpy(dtype=float)):
        color, form = (CHOICE, "D") if place == len(lines) - 1 else (OTHERS, "o")
        axes.errorbar(number, place, xerr=errors[:, place : place + 1], capsize=3, color=color, fmt=form)
    axes.grid(axis="x", alpha=0.3)


def _take_roots(axes: Axes, longest: float) -> None:
    """A scale for regrets: good estimators lie within a point of each other, bad ones ten points off."""
    roots = (lambda points: np.sign(points) * np.sqrt(np.abs(points)), lambda roots: np.sign(roots) * np.square(roots))
    axes.set_xscale("function", functions=roots)
    axes.set_xticks([0, 0.5, 1, 2, 5, 10, 20, 50], ["0", "0.5", "1", "2", "5", "10", "20", "50"])
    axes.set_xlim(-0.002 * longest, 1.1 * longest)


def _mark_best(axes: Axes, table: pd.DataFrame) -> None:
    for row, values in enumerate(table.to_numpy()):
        if np.isfinite(values).any():
            axes.plot(int(np.nanargmax(values)), row, marker="*", color="white", markeredgecolor="black", markersize=10)
