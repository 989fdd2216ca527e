"""Evaluations in small: real trainings of scikit-learn's digits."""

import multiprocessing
import os
import signal
from pathlib import Path

import lightning as L
import pandas as pd
from hydra import compose, initialize_config_module

from pge_lightning.app.evaluate import evaluate

SMALL = {"size": 16, "labels": 100, "batch_size": 20}
SETS = {"upright": {}, "turned": {"transform": "rotate90"}, "negative": {"transform": "invert"}}


def config(folder, *overrides, **names):
    """A composed configuration of a small evaluation."""
    with initialize_config_module("pge_lightning.conf", version_base="1.3"):
        return compose("pge", overrides=[*small(folder, **names), f"output_dir={folder}/out", *overrides])


def small(folder, sources=("turned", "negative"), targets=("upright",)):
    """Overrides for tiny trainings of digits, and a probe of two restarts with two steps."""
    options = [
        f"library.root={folder}/library",
        "task=evaluate",
        "trainer=cpu",
        "selector=gap",
    ]
    for kind, names in (("sources", sources), ("targets", targets)):
        for name in names:
            options.append(f"+data@evaluate.{kind}.{name}=digits")
            changes = {**SMALL, **SETS.get(name, {})}
            options += [f"evaluate.{kind}.{name}.{key}={value}" for key, value in changes.items()]
    options += ["evaluate.seeds=[0,1]", "probe=fast", "probe.steps=2", "probe.batch_size=20", "probe.budgets=[40]"]
    options += ["trainer.max_epochs=1", "+trainer.limit_test_batches=5", "trainer.limit_val_batches=1"]
    options += ["+evaluate.train.model.lr=0.005", "+evaluate.finetune.model.lr=0.005"]
    return [*options, "+evaluate.finetune.trainer={limit_val_batches:0,max_epochs:3}"]


def read(folder, name):
    return pd.read_csv(Path(f"{folder}/library-evaluation/{name}.csv"), keep_default_na=False, na_values=[""])


class Saboteur(L.Callback):
    """Kills this process while a file of that name is there and so many cells are written."""

    def __init__(self, flag: str, cells: str, count: int) -> None:
        self.flag, self.cells, self.count = Path(flag), Path(cells), count

    def on_train_start(self, trainer, pl_module):
        if self.flag.exists() and self.cells.exists() and len(self.cells.read_text().splitlines()) > self.count:
            os.kill(os.getpid(), signal.SIGKILL)


def sabotage(flag, log, count):
    """The override that has a run killed."""
    return f"+callbacks.kill={{_target_:{__name__}.Saboteur,flag:{flag},cells:{log},count:{count}}}"


def run_until_killed(cfg, flag):
    """Evaluate in a process that kills itself."""
    flag.touch()
    process = multiprocessing.get_context("spawn").Process(target=evaluate, args=(cfg,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    flag.unlink()
