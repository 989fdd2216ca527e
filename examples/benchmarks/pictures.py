r"""The benchmarks' tables as pictures.

python examples/benchmarks/pictures.py --out examples/benchmarks/pictures \
    --families outputs/gray28/results outputs/text_intent/results outputs/ucr/results \
    --stability outputs/gray28/results/stability.csv --efficiency outputs/gray28/results/efficiency.csv

What is not given is not drawn: `estimators.png` needs families, `stability.png` and `sources.png` a table each, and
`cost.png` families and efficiency.
"""

import argparse
import math
import textwrap
from itertools import cycle, product
from pathlib import Path

import numpy as np
import pandas as pd
from families import mean_over, read
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox

from pge_lightning.app.plot import BASE, DPI, KINDS, called, plot_estimators

# The palette of Okabe and Ito, without its yellow, which is hard to see on white; grey for the eighth.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#777777")
MARKERS = "osD^vPX*"
SWEPT = {"restarts": r"^(\d+) restarts\b", "steps": r"^(\d+) steps\b", "samples per batch": r"^batches of (\d+)\b"}
MEASURED = {"kendall": "Kendall's tau with the first ranking", "weighted tau": "weighted tau with fine-tuning"}
APART = 1.02  # so that bars of two curves do not hide each other
# Where a label may stand: points away from what it names, and the direction in degrees.
NEAR = 7
PLACES = tuple(product((NEAR, 22, 37, 52, 67), (45, 225, 315, 135, 90, 270)))


def seconds_of(efficiency: pd.DataFrame, sources: int, samples: int) -> pd.Series:
    """Printed name of an estimator to what a new target costs it, in seconds."""
    chosen = efficiency[(efficiency["sources"] == sources) & (efficiency["samples"] == samples)]
    if chosen.empty:
        there = efficiency[["sources", "samples"]].drop_duplicates().itertuples(index=False)
        raise SystemExit(
            f"Expected a cost with {sources} sources and {samples} samples, but there are only those with "
            f"{', '.join(f'{one} and {other}' for one, other in there)}. Choose by --sources and --samples."
        )
    return chosen.groupby(chosen["estimator"].map(called))["s"].mean()


def front(points: pd.DataFrame) -> pd.DataFrame:
    """The estimators that none beats in cost and regret together, the cheapest first."""
    ordered = points.sort_values(["seconds", "regret"])
    return ordered[ordered["regret"] < ordered["regret"].cummin().shift(fill_value=np.inf)]


def plot_cost(path: Path, means: pd.DataFrame, seconds: pd.Series, title: str) -> Figure:
    """Seconds for a new target against mean regret, a point per estimator, with the Pareto front."""
    table = means.set_axis(means.index.map(called)).assign(seconds=seconds)
    points, rest = table.dropna(subset=["seconds"]), table.index[table["seconds"].isna()]
    if points.empty:
        raise SystemExit(
            f"Expected the cost of an estimator that was judged, but got that of {', '.join(seconds.index)}."
        )
    figure = Figure(figsize=(9, 5.5), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    best = front(points)
    corners = [*best["seconds"], 1.3 * points["seconds"].max()], [*best["regret"], best["regret"].iloc[-1]]
    axes.step(*corners, where="post", color=BASE, linestyle="--", label="Pareto front")
    for kind, (color, marker) in KINDS.items():
        part = points[points["kind"] == kind]
        if len(part):
            axes.plot(part["seconds"], part["regret"], marker, color=color, label=kind)
    axes.set(xscale="log", xlabel="seconds for a new target", ylabel="mean regret in points")
    axes.margins(0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.set_title(title)
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    if len(rest):
        note = textwrap.fill(f"Cost not measured: {'; '.join(rest)}.", 120, break_on_hyphens=False)
        figure.supxlabel(note, fontsize="small", color=BASE)
    _label(figure, axes, points)
    figure.savefig(path)
    return figure


def plot_sources(path: Path, efficiency: pd.DataFrame) -> Figure:
    """Seconds for a new target against the number of sources, a line per estimator, a panel per number of samples."""
    panels = sorted(efficiency["samples"].unique())
    # Those that were measured with one number of samples only would be too many lines.
    measured = efficiency.groupby("estimator")["samples"].transform("nunique")
    efficiency = efficiency[measured >= min(2, len(panels))]
    figure = Figure(figsize=(9, 4.8), dpi=DPI, layout="constrained")
    grid = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, samples in zip(grid, panels, strict=True):
        part = efficiency[efficiency["samples"] == samples]
        for place, (name, color, marker) in enumerate(
            zip(efficiency["estimator"].unique(), cycle(COLORS), cycle(MARKERS))
        ):
            line = part[part["estimator"] == name].groupby("sources")["s"].mean()
            again = {"linestyle": "--", "markerfacecolor": "white"} if place >= len(COLORS) else {}
            axes.plot(line.index, line, color=color, marker=marker, label=called(name), **again)
        counts = sorted(efficiency["sources"].unique())
        axes.set(xscale="log", yscale="log", xlabel="sources in the library", title=f"{samples:,} target samples")
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
    grid[0].set_ylabel("seconds for a new target")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)
    return figure


def plot_stability(path: Path, table: pd.DataFrame) -> Figure:
    """Agreement and quality against the numbers of restarts, steps and samples per batch, a row for each."""
    swept = {
        what: table["condition"].str.extract(pattern, expand=False).astype(float) for what, pattern in SWEPT.items()
    }
    swept = {what: numbers.dropna() for what, numbers in swept.items() if numbers.notna().any()}
    if not swept:
        raise SystemExit(
            f"Expected conditions such as '16 restarts', but got {', '.join(table['condition'].unique())}."
        )
    figure = Figure(figsize=(9, 1 + 2.3 * len(swept)), dpi=DPI, layout="constrained")
    grid = figure.subplots(len(swept), len(MEASURED), sharey="col", squeeze=False)
    for row, (what, numbers) in zip(grid, swept.items(), strict=True):
        for axes, measure in zip(row, MEASURED, strict=True):
            _curves(axes, table.loc[numbers.index].assign(number=numbers), measure)
            axes.set_xlabel(what)
    for axes, title in zip(grid[0], MEASURED.values(), strict=True):
        axes.set_title(title, fontsize="medium")
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        *handles, loc="outside lower center", ncols=4, frameon=False, title="bars: standard error over targets"
    )
    figure.savefig(path)
    return figure


def _curves(axes: Axes, table: pd.DataFrame, measure: str) -> None:
    """A line per form of the gap: means over targets and their standard errors."""
    for place, (name, color, marker) in enumerate(zip(table["form"].unique(), cycle(COLORS), cycle(MARKERS))):
        targets = table[table["form"] == name].groupby(["number", "target"])[measure].mean().groupby("number")
        mean, error = targets.mean(), targets.sem().fillna(0)
        axes.errorbar(mean.index * APART**place, mean, yerr=error, color=color, marker=marker, capsize=3, label=name)
    numbers = sorted(table["number"].unique())
    axes.set_xscale("log")
    axes.set_xticks(numbers, [f"{number:g}" for number in numbers])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


def _label(figure: Figure, axes: Axes, points: pd.DataFrame) -> None:
    """Name every point, where no other point or name stands; a line leads to a name that is further away."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    where = points[["seconds", "regret"]].to_numpy()
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in axes.transData.transform(where)]
    for name, (x, y) in zip(points.index, where, strict=True):
        for distance, degrees in PLACES:
            angle = math.radians(degrees)
            away = round(distance * math.cos(angle), 1), round(distance * math.sin(angle), 1)
            text = _name(axes, name, (x, y), away)
            box = text.get_window_extent()
            inside = all(axes.bbox.contains(*corner) for corner in box.get_points())
            if (distance, degrees) == PLACES[-1] or (inside and not any(box.overlaps(other) for other in taken)):
                break
            text.remove()
        taken.append(box)
        if distance > NEAR:
            line = {"arrowstyle": "-", "color": BASE, "linewidth": 0.6}
            axes.annotate("", (x, y), away, textcoords="offset points", arrowprops=line)


def _name(axes: Axes, name: str, point: tuple[float, float], away: tuple[float, float]) -> Annotation:
    """A name beside a point, on the side that leads away from it."""
    across = "center" if not away[0] else "left" if away[0] > 0 else "right"
    along = "bottom" if away[1] > 0 else "top"
    return axes.annotate(name, point, away, textcoords="offset points", ha=across, va=along, fontsize="small")


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", type=Path, default=[], help="folders of finished evaluations")
    parser.add_argument("--stability", type=Path, help="what stability.py wrote")
    parser.add_argument("--efficiency", nargs="+", type=Path, default=[], help="what efficiency.py wrote")
    parser.add_argument("--sources", type=int, default=100, help="in the library, for cost.png")
    parser.add_argument("--samples", type=int, default=200, help="of the target, for cost.png")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder to write into")
    options = parser.parse_args()
    if not (options.families or options.stability or options.efficiency):
        parser.error("Expected --families, --stability or --efficiency, but got none of them.")
    options.out.mkdir(parents=True, exist_ok=True)
    means = mean_over([read(folder) for folder in options.families]) if options.families else None
    over = f"mean over {len(options.families)} families" if len(options.families) > 1 else "mean over targets"
    if means is not None:
        plot_estimators(options.out / "estimators.png", means.reset_index(), f"Estimators, {over}")
    if options.stability:
        plot_stability(options.out / "stability.png", pd.read_csv(options.stability))
    if options.efficiency:
        efficiency = pd.concat([pd.read_csv(path) for path in options.efficiency], ignore_index=True)
        plot_sources(options.out / "sources.png", efficiency)
        if means is not None:
            seconds = seconds_of(efficiency, options.sources, options.samples)
            title = f"{options.sources:,} sources, {options.samples:,} target samples; {over}"
            plot_cost(options.out / "cost.png", means, seconds, title)


if __name__ == "__main__":
    main()
