"""The picture of an evaluation: what an estimator said beside what fine-tuning gave."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pge_lightning.app.tasks import SCRATCH

__all__ = ["plot_target", "plot_targets"]

# Blue and vermilion of the palette of Okabe and Ito, which all kinds of colour vision tell apart.
CHOICE, OTHERS, BASE = "#D55E00", "#0072B2", "#555555"
DPI = 150


def plot_target(path: Path, truth: pd.DataFrame, ranking: pd.DataFrame, estimator: str) -> None:
    """Draw what an estimator said of every source, the best on top, beside what fine-tuning from it gave.

    Args:
        path: The PNG file to write.
        truth: What fine-tuning gave on one target: columns source, mean, standard_deviation.
        ranking: The ranking for that target: columns source, estimate, score, low, high.
        estimator: What the ranking is called.
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


def plot_targets(path: Path, truth: pd.DataFrame, rankings: pd.DataFrame, estimator: str) -> None:
    """Draw two heat maps side by side, targets down and sources across: closeness, and what fine-tuning gave.

    Both are standardised per target, as sources are compared within a target only; dark is better in both.

    Args:
        path: The PNG file to write.
        truth: What fine-tuning gave: columns target, source, mean.
        rankings: The rankings: columns target, source, score.
        estimator: What the rankings are called.
    """
    targets = list(dict.fromkeys(truth["target"]))
    known = dict.fromkeys([*rankings["source"], *truth["source"]])
    sources = sorted((name for name in known if name != SCRATCH), key=lambda name: (name not in targets, name))
    size = (max(9.0, 3 + 0.7 * len(sources)), 2.6 + 0.4 * len(targets))
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
        axes.set_xticks(range(len(sources)), sources, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel("source")
    left.set_yticks(range(len(targets)), targets)
    left.set_ylabel("target")
    figure.colorbar(image, ax=[left, right], label="standard deviations\nfrom the row's mean")
    figure.suptitle("Dark is better within a row; a star marks its best source", fontsize="medium")
    figure.savefig(path)


def _dots(axes: Axes, lines: pd.DataFrame, value: str, spread: np.ndarray) -> None:
    """One dot per source with its error bar; the choice stands out by colour and shape."""
    errors = np.broadcast_to(np.nan_to_num(spread), (2, len(lines)))
    for place, number in enumerate(lines[value].to_numpy(dtype=float)):
        color, form = (CHOICE, "D") if place == len(lines) - 1 else (OTHERS, "o")
        axes.errorbar(number, place, xerr=errors[:, place : place + 1], capsize=3, color=color, fmt=form)
    axes.grid(axis="x", alpha=0.3)


def _mark_best(axes: Axes, table: pd.DataFrame) -> None:
    for row, values in enumerate(table.to_numpy()):
        if np.isfinite(values).any():
            axes.plot(int(np.nanargmax(values)), row, marker="*", color="white", markeredgecolor="black", markersize=11)
