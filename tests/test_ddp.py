"""Two processes under a real Trainer: the same training, the same signature, the same choice, the same failure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from pge_lightning.library import Library
from trainer_helpers import Net, callback, fit, make_loader


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What both ranks found in the runs of ddp_runs.py."""
    folder, script = tmp_path_factory.mktemp("ddp"), Path(__file__).with_name("ddp_runs.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, script, folder], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = [json.loads((folder / f"outcome-{rank}.json").read_text()) for rank in range(2)]
    return folder, outcomes


@pytest.mark.parametrize("name", ["default", "static graph", "unused parameters", "sampler with state"])
def test_training_of_two_processes_is_bit_identical(name, two_processes):
    _, outcomes = two_processes
    assert [outcome["differing"][name] for outcome in outcomes] == [[], []]
    assert [outcome["ranks agree"][name] for outcome in outcomes] == [True, True]


def test_two_processes_collect_the_signature_of_one(two_processes, tmp_path):
    folder, outcomes = two_processes
    pl.seed_everything(1, verbose=False)
    alone = callback(tmp_path)
    fit(Net(), make_loader(), [alone])
    source = Library(folder / "library").open("default")
    (together,) = [source.load_signature(entry) for entry in source.signatures]
    together.check_comparable(alone.signatures[0])
    assert (together.data, together.samples) == (alone.signatures[0].data, 64)
    for name, stack in alone.signatures[0].units.items():
        torch.testing.assert_close(together.units[name], stack, rtol=1e-6, atol=1e-6)
    assert [outcome["signatures after two fits"] for outcome in outcomes] == [1, 1]


def test_two_processes_select_the_same_source(two_processes):
    _, outcomes = two_processes
    assert outcomes[0]["selected"] == outcomes[1]["selected"] == "default"
    assert [outcome["ranks agree"]["selection"] for outcome in outcomes] == [True, True]


@pytest.mark.parametrize(
    ("kind", "message"), [("taken", "registered already"), ("nan", "Rank 1: In restart 1: Expected a finite")]
)
def test_what_fails_on_one_process_fails_on_both_before_training(kind, message, two_processes):
    _, outcomes = two_processes
    for error, calls in (outcome[kind] for outcome in outcomes):
        assert message in error
        assert calls == 0
