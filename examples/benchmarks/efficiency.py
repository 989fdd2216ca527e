"""What does a new target cost, with 10, 100 and 1,000 sources? The gap beside feature scores, and beside trying all.

PGE_DATA=FOLDER pge family=gray28
PGE_DATA=FOLDER python examples/benchmarks/efficiency.py outputs/gray28/sources outputs/gray28/results

The library's checkpoints are copied until there are enough. Each measurement is one ranking for the target MNIST in a
process of its own, repeated as often as asked for: medians of seconds, and of peak memory beyond what there was before.
The target's signature is collected anew, and sources are read from disk. Gaps between sources are measured once and
kept: the first ranking does so, and has a row of its own. Trying all is the number of sources times the mean of the
evaluation's fine-tunings. A new source costs a collection per probe, whatever the size of the library, in
`efficiency_sources.csv`; feature scores ask nothing of it.
"""

import argparse
import json
import math
import multiprocessing
import resource
import shutil
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from finished import open_study
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pge_lightning.app.build import build_data
from pge_lightning.app.tasks import seeded_model
from pge_lightning.collect import collect_signature
from pge_lightning.estimators import (
    Estimator,
    FeatureScore,
    GapEstimator,
    InputStatistics,
    OTDDEstimator,
    Target,
    Task2VecEstimator,
    both_gaps,
    combined,
    default_estimator,
    frozen_estimator,
    gap_and_history,
)
from pge_lightning.library import Library
from pge_lightning.probe import Probe
from pge_lightning.rank import rank_sources
from pge_lightning.source import COMMIT

TARGET = "mnist"
FIRST = "first ranking"
ESTIMATORS: dict[str, Callable[[dict[str, Probe]], Estimator]] = {
    f"gap, {FIRST}": lambda probes: GapEstimator(probes["default"]),
    f"label-free gap, {FIRST}": lambda probes: GapEstimator(probes["label_free"], name="label_free"),
    "gap": lambda probes: GapEstimator(probes["default"]),
    "both gaps": lambda probes: both_gaps(probes["default"], probes["label_free"]),
    "plain gap": lambda probes: GapEstimator(probes["default"], generality=0),
    "label-free gap": lambda probes: GapEstimator(probes["label_free"], name="label_free"),
    "Task2Vec": lambda probes: Task2VecEstimator(probes["task2vec"]),
    "signatures": lambda probes: gap_and_history(probes["default"], probes["label_free"], probes["task2vec"]),
    "OTDD": lambda _: OTDDEstimator(),
    "input statistics": lambda _: InputStatistics(),
    "H-score, regularised": lambda _: FeatureScore("regularized_h_score"),
    "nearest neighbours": lambda _: FeatureScore("knn"),
    "linear probe": lambda _: FeatureScore("linear_probe"),
    "LogME": lambda _: FeatureScore("log_me"),
    "SFDA": lambda _: FeatureScore("sfda"),
    "GBC": lambda _: FeatureScore("gaussian_bhattacharyya"),
    "PARC": lambda _: FeatureScore("parc"),
    "PACTran": lambda _: FeatureScore("pactran"),
    "NLEEP": lambda _: FeatureScore("nleep"),
    "LEEP": lambda _: FeatureScore("leep"),
    "NCE": lambda _: FeatureScore("nce"),
    "TransRate": lambda _: FeatureScore("trans_rate"),
    "frozen": lambda _: frozen_estimator(),
    "default": lambda probes: default_estimator(probes["default"], probes["label_free"], probes["task2vec"]),
    "combined": lambda probes: combined(probes["default"], probes["label_free"], probes["task2vec"]),
}


def enlarge(original: Path, folder: Path, count: int) -> None:
    """Fill a folder up with copies of the sources that are not the target's own."""
    names = sorted(path.parent.name for path in original.glob(f"*/{COMMIT}") if path.parent.name != TARGET)
    for number in range(len(list(folder.glob(f"*/{COMMIT}"))), count):
        copy = folder / f"source{number:04}"
        shutil.copytree(original / names[number % len(names)], copy)
        content = json.loads((copy / COMMIT).read_text())
        (copy / COMMIT).write_text(json.dumps({**content, "name": copy.name}))


def measure(options: argparse.Namespace, folder: str, name: str, samples: int, sender: Connection) -> None:
    """Rank once, and send seconds and peak memory in MiB."""
    shutil.rmtree(Path(folder, ".targets"), ignore_errors=True)
    torch.set_num_threads(options.threads)
    study = open_study(options.family, options.library, options.results)
    job = study.target_job(TARGET, study.seeds[0])
    job.data.labels = samples
    datamodule = build_data(job.data)
    model = seeded_model(job, datamodule)
    estimator = ESTIMATORS[name]({probe.name: probe for probe in study.probes})
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    ranking = rank_sources(Target(model, datamodule, Library(folder), encoder="encoder", samples=samples), estimator)
    seconds = time.perf_counter() - begin
    if any(line.estimate is None for line in ranking.sources):
        raise RuntimeError(f"Expected {name} to judge all sources, but got {ranking.sources[-1].reason}.")
    sender.send((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def measure_source(options: argparse.Namespace, name: str, sender: Connection) -> None:
    """Collect one signature of a new source, and send seconds and peak memory in MiB."""
    torch.set_num_threads(options.threads)
    study = open_study(options.family, options.library, options.results)
    probe = next(each for each in study.probes if each.name == name)
    job = study.source_job(TARGET)
    datamodule = build_data(job.data)
    model = seeded_model(job, datamodule)
    datamodule.prepare_data()
    datamodule.setup("fit")
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    budget = probe.budgets[-1] if probe.budgets else None
    collect_signature(model, datamodule.train_dataloader(), probe=probe, budget=budget, encoder="encoder")
    seconds = time.perf_counter() - begin
    sender.send((seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def measured(rounds: int, work: Callable[..., None], *arguments: object) -> tuple[float, float]:
    """Medians of what a measurement sends from processes of its own; nan where it fails and says why."""
    context, found = multiprocessing.get_context("spawn"), []
    for _ in range(rounds):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(*arguments, sender))
        process.start()
        sender.close()
        try:
            found.append(receiver.recv())
        except EOFError:
            return math.nan, math.nan
        finally:
            process.join()
    seconds, peaks = zip(*found, strict=True)
    return median(seconds), median(peaks)


def keep(path: Path, key: list[str], row: list[object]) -> None:
    """Write a measurement into a table on disk, in place of an older one of the same key."""
    rows = pd.DataFrame([row], columns=[*key, "s", "MiB"])
    if path.exists():
        rows = pd.concat([pd.read_csv(path), rows]).drop_duplicates(key, keep="last")
    rows.to_csv(path, index=False)


def main() -> None:
    """Measure, write `efficiency.csv` into the results after every measurement, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="folder of the sources")
    parser.add_argument("results", help="folder of the evaluation")
    parser.add_argument("--family", default="gray28")
    parser.add_argument("--sources", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--samples", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of PyTorch, for all estimators")
    parser.add_argument("--estimators", nargs="+", default=[*ESTIMATORS], choices=[*ESTIMATORS])
    parser.add_argument("--probes", nargs="*", help="whose signature of a new source is measured; all if not given")
    parser.add_argument("--rounds", type=int, default=1, help="measurements, of which medians are taken")
    options = parser.parse_args()
    path, key = Path(options.results) / "efficiency.csv", ["estimator", "sources", "samples"]
    with TemporaryDirectory() as folder:
        for count in sorted(options.sources):
            enlarge(Path(options.library), Path(folder), count)
            for samples in options.samples:
                for kept in (".gaps", ".directions"):
                    shutil.rmtree(Path(folder, kept), ignore_errors=True)
                for name in track(options.estimators, f"{count} sources, {samples} samples", transient=True):
                    # What the first ranking keeps makes the next one another.
                    rounds = 1 if name.endswith(FIRST) else options.rounds
                    seconds, peak = measured(rounds, measure, options, folder, name, samples)
                    keep(path, key, [name, count, samples, seconds, peak])
    cells = pd.concat(map(pd.read_csv, Path(options.results).glob("cells*.csv")))
    each = cells.loc[cells["target"] == TARGET, "seconds"].mean()
    known = [probe.name for probe in open_study(options.family, options.library, options.results).probes]
    of_sources = path.with_name("efficiency_sources.csv")
    for name in known if options.probes is None else options.probes:
        keep(of_sources, ["probe"], [name, *measured(options.rounds, measure_source, options, name)])
    rows = pd.read_csv(path)
    seconds = rows.pivot(index="estimator", columns=["samples", "sources"], values="s").sort_index(axis=1)
    seconds = seconds.loc[[name for name in ESTIMATORS if name in seconds.index]]
    table = Table(
        "estimator", *(f"{samples:,} samples\n{count:,} sources" for samples, count in seconds.columns), box=None
    )
    for name, row in seconds.iterrows():
        table.add_row(str(name), *("-" if math.isnan(value) else f"{value:.1f} s" for value in row))
    table.add_row("trying all", *(f"{count * each:.0f} s" for _, count in seconds.columns))
    Console(width=140).print(table)
    print(f"Peak memory beyond what there was: {rows['MiB'].max():.0f} MiB at most.")
    if of_sources.exists():
        costs = pd.read_csv(of_sources)
        told = (f"{name} {taken:.1f} s, {peak:.0f} MiB" for name, taken, peak in costs.itertuples(index=False))
        print(f"A new source costs, by probe: {'; '.join(told)}.")


if __name__ == "__main__":
    main()
