"""Several finished evaluations side by side, and whether the default's weights hold where they were not chosen.

python examples/benchmarks/families.py outputs/gray28/results outputs/text_intent/results outputs/ucr/results

First weighted tau and regret of every estimator, and their means; the highest mean weighted tau stands on top, and
estimators that could not rank all targets are left out. Then, for each family, the weights of the combination of all
sources that rank the *other* families best in the mean, and what they give on this one.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from pge_lightning.app.quality import assess
from pge_lightning.record import SCRATCH

MEMBERS = ("standing", "gap", "task2vec", "label_free", "linear_probe", "log_me")
DEFAULT = (1, 1, 1, 0.5, 0.5, 0.5)
HEDGED = ("standing",)  # which counts as far as it is not noise
GRID = [(1, *weights) for weights in product((0, 0.5, 1), repeat=len(MEMBERS) - 1)]


def read(folder: Path) -> pd.DataFrame:
    """Means over targets of the estimators that ranked all of them, with the ends of their intervals."""
    table = pd.read_csv(folder / "estimators.csv", keep_default_na=False, na_values=[""])
    return table[table["targets"] == table["targets"].max()].set_index("estimator")


def mean_over(families: list[pd.DataFrame]) -> pd.DataFrame:
    """Means over families of the estimators that all have, best on top; their errors are independent of each other."""
    common = sorted(set.intersection(*(set(family.index) for family in families)))
    mean = families[0].loc[common, ["kind"]].copy()
    for name in ("weighted_tau", "regret"):
        value, low, high = (
            np.stack([family.loc[common, f"{name}{end}"] for family in families]) for end in ("", "_low", "_high")
        )
        half = np.sqrt(((high - low) ** 2).mean(axis=0) / len(families)) / 2
        middle = (low + high).mean(axis=0) / 2
        mean[name], mean[f"{name}_low"], mean[f"{name}_high"] = value.mean(axis=0), middle - half, middle + half
    return mean.sort_values("weighted_tau", ascending=False)


def votes(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each target the votes ``[sources, members]``, and what fine-tuning gave ``[sources]``."""
    return [(scores.to_numpy(), gave.to_numpy()) for scores, gave in votes_by_target(folder).values()]


def votes_by_target(folder: Path) -> dict[str, tuple[pd.DataFrame, pd.Series]]:
    """Target to the votes, sources down and members across, and to what fine-tuning gave."""
    truth = pd.read_csv(folder / "truth.csv", keep_default_na=False, na_values=[""])
    rankings = pd.read_csv(folder / "rankings.csv", keep_default_na=False, na_values=[""])
    found = {}
    for target, part in truth[truth["source"] != SCRATCH].groupby("target"):
        gave = part.set_index("source")["mean"].dropna()
        said = rankings[rankings["target"] == target].pivot(index="source", columns="estimator")
        scores, errors = (
            said[what].reindex(index=gave.index, columns=list(MEMBERS)).astype(float)
            for what in ("score", "standard_error")
        )
        spread = scores.std(ddof=0).where(lambda values: values > 0, np.inf)
        shares = (1 - ((errors / spread) ** 2).mean()).clip(lower=0)
        scaled = (scores - scores.mean()) / spread * shares.where(shares.index.isin(HEDGED), 1.0)
        found[str(target)] = scaled.fillna(0.0), gave
    return found


def measured(weights: tuple[float, ...], family: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Weighted tau and regret of a combination, in the mean over the targets of a family."""
    found = [assess(scores @ np.array(weights), gave) for scores, gave in family]
    # Votes that cancel, or history that is but noise, leave no order, whose tau is not defined: 0, as by chance.
    taus = np.nan_to_num([each.weighted_tau for each in found])
    return float(np.mean(taus)), float(np.mean([each.regret for each in found]))


def show_table(names: list[str], families: list[pd.DataFrame]) -> None:
    """Print every estimator's row, in Markdown."""
    mean = mean_over(families)
    print(f"| estimator | {' | '.join(names)} | mean |")
    for name in mean.index:
        row = [f"{table.at[name, 'weighted_tau']:+.2f} / {table.at[name, 'regret']:.1f}" for table in families]
        total = f"{mean.at[name, 'weighted_tau']:+.3f} / {mean.at[name, 'regret']:.2f}"
        print(f"| {' | '.join([name, *row, total])} |")


def show_choice(names: list[str], families: list[list[tuple[np.ndarray, np.ndarray]]]) -> None:
    """Print what weights chosen on the other families give."""
    table = np.array([[measured(weights, family) for family in families] for weights in GRID])
    chosen = []
    for place, name in enumerate(names):
        best = int(np.delete(table[:, :, 0], place, axis=1).mean(axis=1).argmax())
        chosen.append(table[best, place])
        weights = ", ".join(f"{member} {weight:g}" for member, weight in zip(MEMBERS, GRID[best], strict=True))
        print(f"{name}: chosen on the others {chosen[-1][0]:+.3f} / {chosen[-1][1]:.2f} ({weights}); ", end="")
        print("default {:+.3f} / {:.2f}".format(*table[GRID.index(DEFAULT), place]))
    print("mean: chosen on the others {:+.3f} / {:.2f}; ".format(*np.mean(chosen, axis=0)), end="")
    print("default {:+.3f} / {:.2f}".format(*table[GRID.index(DEFAULT)].mean(axis=0)))


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="folders of evaluations")
    folders = parser.parse_args().results
    names = [folder.resolve().parent.name for folder in folders]
    show_table(names, [read(folder) for folder in folders])
    show_choice(names, [votes(folder) for folder in folders])


if __name__ == "__main__":
    main()
