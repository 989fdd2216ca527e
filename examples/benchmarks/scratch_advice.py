"""Is it seen beforehand which sources do worse than scratch? Advice for every pair of a finished evaluation.

pge family=text_intent
python examples/benchmarks/scratch_advice.py outputs/text_intent/sources outputs/text_intent/results

What fine-tuning really gave comes from the evaluation's `cells.csv`. A pair is of a source and a target; "do not
transfer" is right where the mean over seeds is lower than that of scratch. Records are those of other targets. Races
run with the evaluation's own model, optimizer and labels, never with test data. It goes on where it was stopped.
"""

import argparse
import time
import warnings
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd
import torch
from finished import open_study
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table
from sklearn.linear_model import LogisticRegression

from pge_lightning.app.build import build_data
from pge_lightning.app.study import Study
from pge_lightning.app.tasks import seeded_model
from pge_lightning.app.work import Worker
from pge_lightning.decide import probe_evidence, race_evidence, records_evidence
from pge_lightning.estimators.target import Target
from pge_lightning.functional.scores import linear_probe_folds
from pge_lightning.race import RacePlan, run_race
from pge_lightning.record import SCRATCH

CLEAR = 1.5  # standard errors that a gain is away from zero where the truth is called clear
DRAWS = 3  # re-initialised encoders that a source's features are compared with
RESAMPLES = 2000
HALVES = 100  # draws of the seeds' halves
MEASURES = ("precision", "recall", "F1", "accuracy", "balanced accuracy")


def read_values(results: str) -> pd.DataFrame:
    """What fine-tuning gave, ``[pairs of target and source, seeds]``; scratch is one of the sources."""
    logs = sorted(Path(results).glob("cells*.csv"))
    cells = pd.concat([pd.read_csv(log, keep_default_na=False, na_values={"value": [""]}) for log in logs])
    tuned = cells[cells["target"] != ""].dropna(subset="value")
    return tuned.pivot_table(index=["target", "source"], columns="seed", values="value")


def over_scratch(values: pd.DataFrame) -> pd.DataFrame:
    """Mean gain of every pair over scratch, and its standard error, from all seeds that each was tuned with."""
    frame = pd.DataFrame({"mean": values.mean(axis=1), "square": values.var(axis=1) / values.count(axis=1)})
    scratch = frame.xs(SCRATCH, level="source").reindex(frame.index.get_level_values("target")).set_axis(frame.index)
    gains = pd.DataFrame({"gain": frame["mean"] - scratch["mean"], "error": (frame + scratch)["square"] ** 0.5})
    return gains.drop(index=SCRATCH, level="source")


def tune_scratch(study: Study, seeds: int) -> None:
    """Fine-tune from scratch with more seeds: one value of scratch is compared with all sources."""
    with Progress(console=Console(quiet=True)) as progress:
        worker = Worker(study, progress)
        for seed in range(seeds):
            for target in study.targets:
                worker.fine_tune(target, seed, [SCRATCH])


def looks_at(job: DictConfig, study: Study, names: list[str], truth: pd.DataFrame, options: argparse.Namespace) -> list:
    """Log-odds of sources of one target by each kind of evidence, and what they cost."""
    datamodule = build_data(job.data)
    model = seeded_model(job, datamodule)
    begin = time.perf_counter()
    target = Target(model, datamodule, study.library, encoder="encoder")

    def folds(source: str | None, draw: int = 0) -> np.ndarray:
        found = target.features(source, draw)
        return linear_probe_folds(found.features, found.classes).numpy()

    probed, random = {name: folds(name) for name in names}, np.stack([folds(None, draw) for draw in range(DRAWS)])
    seconds = time.perf_counter() - begin
    names = chosen(names, probed, options.sources)
    sources = {name: study.library.open(name).load_weights for name in names}
    plan = RacePlan(options.steps * options.splits * (len(names) + 1), options.splits, halve=False)
    race = run_race(model, datamodule.train_dataloader(), sources, plan)
    past = truth.drop(index=job.name)
    evidence = {
        "linear probe": lambda name: probe_evidence(probed[name], random),
        "records": lambda name: records_evidence(past, name),
        "race": lambda name: race_evidence(race, name),
    }
    costs = {"probe_seconds": seconds, "race_seconds": race.seconds, "race_steps": race.steps}
    rows = []
    for name in names:
        odds = {kind: getattr(look(name), "log_odds", 0.0) for kind, look in evidence.items()}
        rows.append({"target": job.name, "source": name, "probe": probed[name].mean(), **odds, **costs})
    return rows


def chosen(names: list[str], probed: dict[str, np.ndarray], count: int | None) -> list[str]:
    """The source that the linear probe would choose, and others at random."""
    best = max(names, key=lambda name: probed[name].mean())
    others = np.random.default_rng(len(names)).permutation([name for name in names if name != best])
    return [best, *others.tolist()[: None if count is None else count - 1]]


def judge(wrong: np.ndarray, advised: np.ndarray) -> list[float]:
    """The measures of advice against transfer, ``advised``, where transfer is ``wrong``; both bool ``[pairs]``."""
    hits = (wrong & advised).sum()
    precision = hits / advised.sum() if advised.any() else np.nan
    recall, kept = hits / max(wrong.sum(), 1), (~wrong & ~advised).sum() / max((~wrong).sum(), 1)
    f1 = 2 * hits / max(advised.sum() + wrong.sum(), 1)
    return [precision, recall, f1, (wrong == advised).mean(), (recall + kept) / 2]


def intervals(pairs: pd.DataFrame, advised: pd.Series) -> list[str]:
    """Each measure with its 95 % interval over resampled targets."""
    groups = [np.flatnonzero(pairs["target"] == name) for name in pairs["target"].unique()]
    wrong, said = (pairs["gain"] < 0).to_numpy(), advised.to_numpy()
    random = np.random.default_rng(0)
    draws = [
        np.concatenate([groups[i] for i in random.integers(len(groups), size=len(groups))]) for _ in range(RESAMPLES)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # who never advises against a source has no precision
        low, high = np.nanquantile([judge(wrong[draw], said[draw]) for draw in draws], [0.025, 0.975], axis=0)
    values = zip(judge(wrong, said), low, high, strict=True)
    return ["-" if np.isnan(value) else f"{value:.2f} ({least:.2f}-{most:.2f})" for value, least, most in values]


def calibrated(pairs: pd.DataFrame) -> pd.Series:
    """Advice by the race alone, with the line drawn where it is best on all other targets."""
    advised = pd.Series(False, index=pairs.index)
    for name in pairs["target"].unique():
        here, others = pairs[pairs["target"] == name], pairs[pairs["target"] != name]
        if others["gain"].lt(0).nunique() == 2:
            fitted = LogisticRegression(C=1e3).fit(others[["race"]], others["gain"] < 0)
            advised[here.index] = fitted.predict(here[["race"]])
    return advised


def ways(pairs: pd.DataFrame) -> dict[str, pd.Series]:
    """Way to advise, to what it advises against."""

    def against(*kinds: str) -> pd.Series:
        return pairs[list(kinds)].sum(axis=1) < 0

    return {
        "always transfer": pd.Series(False, index=pairs.index),
        "never transfer": pd.Series(True, index=pairs.index),
        "linear probe": against("linear probe"),
        "records": against("records"),
        "linear probe and records (default without a race)": against("linear probe", "records"),
        "race (default with a race)": against("race"),
        "race and records": against("race", "records"),
        "race, calibrated on the other targets": calibrated(pairs),
    }


def ceiling(values: pd.DataFrame) -> list[float]:
    """The measures of real fine-tunings as advice: one half of the seeds judged by the other, mean over draws."""
    values = values.dropna(axis=1)
    random, found = np.random.default_rng(0), []
    for _ in range(HALVES):
        seeds = random.permutation(values.columns)
        halves = seeds[: len(seeds) // 2], seeds[len(seeds) // 2 :]
        told, true = (over_scratch(values[half])["gain"].to_numpy() < 0 for half in halves)
        found.append(judge(true, told))
    return np.mean(found, axis=0).tolist()


def show(pairs: pd.DataFrame, values: pd.DataFrame, console: Console) -> None:
    """Print how good the advice is, for all pairs, for clear ones, and for the source that the probe would choose."""
    clear = pairs["gain"].abs() > CLEAR * pairs["error"]
    best = pairs.loc[pairs.groupby("target")["probe"].idxmax()]
    for name, chosen in (("all", pairs), (f"clear by {CLEAR:g} standard errors", pairs[clear])):
        share = (chosen["gain"] < 0).mean()
        table = Table("advice", *MEASURES, "points, best source", box=None, padding=(0, 1, 0, 0), title_justify="left")
        table.title = f"advice not to transfer: {len(chosen)} pairs, {name}; scratch better in {share:.0%}"
        for way, advised in ways(pairs).items():
            points = 100 * best["gain"].where(~advised[best.index], 0.0).mean()
            table.add_row(way, *intervals(chosen, advised[chosen.index]), f"{points:+.2f}")
        if name == "all":
            half = values.dropna(axis=1).shape[1] // 2
            measures = [f"{value:.2f}" for value in ceiling(values)]
            table.add_row(f"fine-tuning itself, {half} seeds judged by {half} others", *measures, "")
        console.print(table)
    console.print(
        f"In brackets 95 % over targets. Points: what follows the advice for the linear probe's best source of each "
        f"target gains over scratch in the mean; knowing the truth, {100 * best['gain'].clip(lower=0).mean():+.2f}.\n"
        f"Cost per target: race {fmean(pairs['race_steps']):.0f} steps, {fmean(pairs['race_seconds']):.1f} s; linear "
        f"probe {fmean(pairs['probe_seconds']):.1f} s; records nothing."
    )


def main() -> None:
    """Look at every pair, write `scratch_advice.csv` into the results, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="folder of the sources")
    parser.add_argument("results", help="folder of `cells.csv`")
    parser.add_argument("--family", default="text_intent")
    parser.add_argument("--scratch-seeds", type=int, default=24, help="fine-tunings from scratch of every target")
    parser.add_argument("--steps", type=int, default=150, help="of every candidate on every split")
    parser.add_argument("--splits", type=int, default=12)
    parser.add_argument("--sources", type=int, help="sources per target: the linear probe's best one and others; all")
    parser.add_argument("--out", help="table of all pairs, where it goes on, too; scratch_advice.csv in the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = open_study(options.family, options.library, options.results)
    tune_scratch(study, options.scratch_seeds)
    values = read_values(options.results)
    truth = values.mean(axis=1).unstack()
    out = Path(options.out or Path(options.results) / "scratch_advice.csv")
    rows = pd.read_csv(out).to_dict("records") if out.exists() else []
    done = {row["target"] for row in rows}
    left = [name for name in study.targets if name in truth.index and name not in done]
    for name in track(left, "Looking at targets", transient=True):
        names = [
            source for source in study.candidates(name)[:-1] if source in truth and source in study.library.names()
        ]
        rows += looks_at(study.target_job(name, study.seeds[0]), study, names, truth, options)
        pd.DataFrame(rows).to_csv(out, index=False)
    pairs = pd.DataFrame(rows)
    known = over_scratch(values).reindex(pd.MultiIndex.from_frame(pairs[["target", "source"]]))
    pairs[["gain", "error"]] = known.to_numpy()
    show(pairs.dropna(subset="gain"), values, Console(width=200))


if __name__ == "__main__":
    main()
