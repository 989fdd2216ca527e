"""What is history worth that knows few targets? The default's other members alone, and with three ways to count it.

python examples/benchmarks/history.py outputs/gray28/results outputs/text_intent/results outputs/ucr/results

Records of some of the other targets only, drawn at random several times. A full vote standardises what history says, as
all other votes are; hedged, as shipped, it counts as far as its spread over the sources is more than its own noise.
Weighted tau and regret, means over targets and draws.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from families import DEFAULT, votes_by_target
from signatures import truth_of

from pge_lightning.app.quality import assess
from pge_lightning.estimators import Estimate
from pge_lightning.estimators.combination import reliability, standardised
from pge_lightning.functional.standing import standardised as scaled
from pge_lightning.functional.standing import standings

WAYS = ("no history", "full vote", "half a vote", "hedged")
COUNTS = (1, 2, 3, 5, None)


def shares(truth: pd.DataFrame, target: str, count: int | None, draw: int) -> tuple[pd.Series, dict[str, float]]:
    """The standardised standings from some of the other targets, and what each way makes of their vote."""
    past = truth.drop(index=target).drop(columns=target, errors="ignore")
    if count is not None:
        past = past.sample(min(count, len(past)), random_state=draw)
    table = standings(scaled(past))
    said = standardised({
        str(name): Estimate(value, error)
        for name, value, error in zip(table.index, table["standing"], table["standard_error"], strict=True)
    })
    vote = pd.Series({name: value for name, (value, _) in said.items()})
    return vote, dict(zip(WAYS, (0.0, 1.0, 0.5, reliability(said)), strict=True))


def measured(folder: Path, count: int | None, draws: int) -> pd.DataFrame:
    """Weighted tau and regret of each way, means over targets and draws."""
    truth, votes = truth_of(folder), votes_by_target(folder)
    rows = []
    for draw in range(draws if count is not None else 1):
        for target, (members, gave) in votes.items():
            vote, each = shares(truth, target, count, draw)
            base = (members * DEFAULT).drop(columns="standing").sum(axis=1)
            for way, share in each.items():
                quality = assess(base + share * vote.reindex(base.index).fillna(0.0), gave)
                rows.append((way, quality.weighted_tau, quality.regret, share))
    return pd.DataFrame(rows, columns=["way", "tau", "regret", "share"]).groupby("way", sort=False).mean()


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="folders of evaluations")
    parser.add_argument("--draws", type=int, default=10, help="draws of past targets")
    options = parser.parse_args()
    names = [folder.resolve().parent.name for folder in options.results]
    print(f"| past targets | history | {' | '.join(names)} | mean |")
    for count in COUNTS:
        found = [measured(folder, count, options.draws) for folder in options.results]
        for way in WAYS:
            cells = [f"{table.at[way, 'tau']:+.2f} / {table.at[way, 'regret']:.1f}" for table in found]
            mean = np.mean([table.loc[way, ["tau", "regret"]] for table in found], axis=0)
            shown = ", ".join(f"{table.at[way, 'share']:.2f}" for table in found)
            told = f"{way} ({shown})" if way == "hedged" else way
            print(f"| {count or 'all'} | {told} | {' | '.join(cells)} | {mean[0]:+.3f} / {mean[1]:.2f} |")


if __name__ == "__main__":
    main()
